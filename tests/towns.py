"""A database of towns and shops on PostgreSQL: what its tests ask about."""

from spftsql.config import SandboxConfig
from spftsql.sandbox.result import Limits

CONFIG = SandboxConfig(soft_seconds=2, hard_seconds=6, max_rows=1000, max_bytes=1_000_000, memory_mb=128)
LIMITS = Limits(**CONFIG.model_dump())

TOWNS = """
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TABLE town (
        id serial PRIMARY KEY, name text, founded date, size int, "order" text, info json, facts jsonb, tags text[],
        place point, mood mood, walled boolean, tax numeric(10, 2), seen timestamptz, away interval, secret text
    );
    COMMENT ON TABLE town IS 'where people live';
    COMMENT ON COLUMN town.name IS 'what people call it';
    INSERT INTO town (name, founded, size, walled, mood, info, tags, place, tax, seen, away) VALUES
        ('Ulm', '0854-07-22', 126000, true, 'happy', '{"a": 1}', '{x,y}', '(1,2)', 1.5, '2020-01-01 10:00+05', '1 mon'),
        ('Köln', '0050-01-01', NULL, false, 'sad', NULL, NULL, NULL, NULL, NULL, NULL);
    CREATE TABLE shop (id int PRIMARY KEY, town_id int REFERENCES town (id), label text, mayor text);
    INSERT INTO shop SELECT i, 1 + i % 2, 'shop ' || i, NULL FROM generate_series(1, 500) AS i;
    CREATE TABLE sale (day date, amount int) PARTITION BY RANGE (day);
    CREATE TABLE sale_2020 PARTITION OF sale FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    INSERT INTO sale VALUES ('2020-02-03', 5);
    CREATE VIEW large AS SELECT name FROM town WHERE size > 1000;
    CREATE TABLE hidden (x int);
    CREATE SCHEMA other;
    CREATE TABLE other.elsewhere (x int);
    CREATE EXTENSION pg_trgm;
    CREATE EXTENSION pg_stat_statements;
    GRANT SELECT ON shop, sale, large TO reader;
    GRANT SELECT (id, name, founded, size, "order", info, facts, tags, place, mood, walled, tax, seen, away) ON town
        TO reader;
"""
