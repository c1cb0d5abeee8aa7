"""Linking, values and prompts on a PostgreSQL database, with the names and types that only it has."""

from __future__ import annotations

import random

import psycopg
import pytest

from spftsql.config import DatabaseConfig, PromptConfig
from spftsql.databases.catalogue import Database, open_catalogue
from spftsql.databases.values import Values
from spftsql.prompts import PromptBuilder
from tests.postgres import Server

pytestmark = pytest.mark.integration

SHOP = """
    CREATE TYPE mood AS ENUM ('rather gloomy', 'merry');
    CREATE TABLE "Kunde" ("Nr" INT PRIMARY KEY, "Straße" TEXT, "user" VARCHAR(40), mood mood, since DATE, owed NUMERIC,
        id UUID DEFAULT gen_random_uuid(), facts JSONB DEFAULT '{}', raw BYTEA);
    COMMENT ON COLUMN "Kunde".owed IS 'money the customer owes';
    CREATE TABLE bestellung (id INT PRIMARY KEY, kunde INT REFERENCES "Kunde");
    INSERT INTO "Kunde" VALUES (1, 'Große Allee 5', 'J. O''Hara', 'rather gloomy', '2020-02-29', 12.50);
    INSERT INTO "Kunde" VALUES (2, NULL, 'nobody', NULL, NULL, 3);
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
"""


@pytest.fixture(scope="module")
def shop(postgres: Server) -> Database:
    postgres.run("CREATE DATABASE linked_shop")
    postgres.run(SHOP, "linked_shop")
    return open_catalogue([DatabaseConfig(name="shop", url=postgres.url("linked_shop"))])["shop"]


def test_a_prompt_names_columns_as_postgresql_does(shop: Database, tiny_models: list[str], postgres: Server) -> None:
    prompts = PromptBuilder(PromptConfig(), tiny_models[0])
    question = "Orders of J. O'Hara in the grosse allee 5, who was rather gloomy since 2020-02-29?"
    prompt = prompts.text_to_sql(shop, question)
    assert 'table "Kunde": "Nr" (number; primary key), "Straße" (text; e.g. Große Allee 5), "user" (text;' in prompt
    assert "owed (number; money the customer owes)" in prompt and 'bestellung.kunde = "Kunde"."Nr"' in prompt
    values = next(line for line in prompt.splitlines() if line.startswith("Values: ")).removeprefix("Values: ")
    assert set(values.split("; ")) == {
        "\"Kunde\".\"user\" = 'J. O''Hara'",
        '"Kunde"."Straße" = \'Große Allee 5\'',
        "\"Kunde\".mood = 'rather gloomy'",
        "\"Kunde\".since = '2020-02-29'",
    }
    with psycopg.connect(postgres.url("linked_shop")) as connection:
        for condition in values.split("; "):
            assert connection.execute(f'SELECT "Nr" FROM "Kunde" WHERE {condition}'.encode()).fetchall() == [(1,)]
    small = PromptBuilder(PromptConfig(max_schema_tokens=40), tiny_models[0]).text_to_sql(shop, "what is owed?")
    assert "owed" in small and "Straße" not in small


def test_values_for_filling(shop: Database) -> None:
    values = Values(shop.location)
    assert values.column("Kunde", "owed") == [(3, 1), (12.5, 1)]
    assert values.column("Kunde", "since") == [("2020-02-29", 1)]
    assert values.column("Kunde", "raw") == values.column("Kunde", "facts") == []
    assert values.bounds("Kunde", "owed") == (3, 12.5) and values.holds("Kunde", "owed", 4) is False
    assert values.draw_row(random.Random(0), "Kunde", ["user", "mood"]) == ("J. O'Hara", "rather gloomy")
