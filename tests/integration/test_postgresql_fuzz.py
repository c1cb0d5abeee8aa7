"""Random and mutated statements on PostgreSQL; the fuzzer and its promise are those of the other engines."""

import re

import pytest

from tests import fuzz
from tests.hostile import CANARY, read_corpus
from tests.postgres import Server, make_shop
from tests.unit.test_sandbox_fuzz import functions_of, keeps_the_promise

pytestmark = pytest.mark.integration

FUNCTIONS = """
    abs n n, round n n, length t n, strpos tt n, coalesce nn n, greatest nn n, sqrt n n, ascii t n, random - n,
    lower t t, left tn t, replace ttt t, btrim t t, reverse t t, md5 t t, nullif tt t, format tt t, initcap t t,
    regexp_replace ttt t, split_part ttn t, concat tn t, pg_typeof n t, repeat tn t, current_setting t t, to_hex n t
"""
STATE = """
    SELECT (SELECT sum(hashtextextended(t::text, 0)::numeric) FROM people t),
        (SELECT sum(hashtextextended(t::text, 0)::numeric) FROM orders t),
        (SELECT count(*) FROM log), (SELECT last_value FROM numbers),
        (SELECT count(*) FROM pg_largeobject_metadata),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
        (SELECT string_agg(relname || relacl::text, ' ' ORDER BY oid) FROM pg_class),
        (SELECT string_agg(proname, ' ' ORDER BY oid) FROM pg_proc),
        (SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM pg_authid t),
        (SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM pg_db_role_setting t),
        (SELECT string_agg(datname, ' ' ORDER BY oid) FROM pg_database),
        (SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings)
"""


@pytest.fixture
def engine(postgres: Server) -> fuzz.Engine:
    for name in ("shop", "secret"):
        postgres.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    address = make_shop(postgres, CANARY)
    return fuzz.Engine(
        name="postgresql",
        database=address,
        tables={
            "people": {"id": "n", "name": "t", "age": "n"},
            "orders": {"id": "n", "person": "n", "total": "n", "note": "t"},
            "adults": {"id": "n", "name": "t", "age": "n"},
        },
        functions=functions_of(FUNCTIONS),
        state=lambda: postgres.run(STATE, "shop"),
        syntax_error=re.compile(
            "syntax error|unterminated|trailing junk|without an end|more than one|NUL|no statement|Unicode|a parameter"
        ),
        hostile=[case.sql for case in read_corpus("postgresql", postgres.folder)],
        config=fuzz.LIMITS.model_copy(update={"hard_seconds": 1.5}),
    )


def test_hundreds_of_statements(engine: fuzz.Engine) -> None:
    keeps_the_promise(fuzz.run(engine, count=300, seed=1), "postgresql")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_statements(engine: fuzz.Engine) -> None:
    keeps_the_promise(fuzz.run(engine, count=10_000, seed=2), "postgresql")
