"""What may be sent to a PostgreSQL server, decided on the text alone; no server is needed here."""

import csv
import json
import re
from pathlib import Path

import pytest

from spftsql.errors import UserError
from spftsql.recipes import resolve
from spftsql.sandbox.location import Location, locate, without_password
from spftsql.sandbox.postgresql.policy import Refused, check, tokenize
from spftsql.sandbox.postgresql.session import connection_string
from tests.hostile import read_corpus

UNLISTED = frozenset({"pg_sleep", "boom", "lo_create", "version"})


def refusal(sql: str) -> str:
    try:
        check(sql, UNLISTED)
    except Refused as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "select 1 ; ; -- done",
        "((SELECT 1))",
        "WITH x(a) AS (VALUES (1)) SELECT a FROM x",
        "TABLE people",
        "SELECT 'boom()', \"boom\", $$ boom() $$, E'\\' boom()', $a$ $$ boom() $a$ /* boom() */ -- boom()",
        "SELECT boom FROM t",
        'SELECT "update", delete, insert AS merge FROM t WHERE (update > 1)',
        "SELECT t.user, t.current_role, 1 AS user FROM t",
        'SELECT "user" FROM "user"',
        "SELECT 1 AS into",
        "SELECT substring(a FROM 1 FOR 2) FROM t",
        "SELECT lpad(x::text, 2, '0'), rpad(x, 10000), format('%s-%2$5s', x, y)",
        "SELECT xml FROM t",
        "SELECT * FROM information_schema.columns",
        "SELECT to_tsvector('english'::regconfig, x)",
        "SELECT a$b FROM t",
        "SELECT 'a'\n'b', N'ü', B'01', X'ff', 1e5, .5, 0x1F, a->>'b', a #> '{x}', a @> b, a ?| b",
        "SELECT émile FROM t WHERE ß = 1",
    ],
)
def test_what_is_let_through(sql: str) -> None:
    assert refusal(sql) == ""


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("", "no statement"),
        (" ; -- x", "no statement"),
        ("DELETE FROM t", "not a query: DELETE"),
        ("explain SELECT 1", "not a query: EXPLAIN"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELECT boom()", "function boom"),
        ("SELECT BOOM ( )", "function boom"),
        ('SELECT "boom"()', "function boom"),
        ("SELECT a.boom/* x */()", "function boom"),
        ("SELECT E'\\\\', boom(), ''", "function boom"),
        ("SELECT '\\', boom(), ' '", "function boom"),
        ("SELECT /* /* */ */ boom()", "function boom"),
        ("SELECT --\nboom()", "function boom"),
        ("SELECT --\rboom()", "function boom"),
        ("SELECT $a$ $b$ $a$, boom()", "function boom"),
        ("SELECT a$$, boom(), b$$", "function boom"),
        ("SELECT 1boom()", "function boom"),
        ("SELECT U&'x'", "a name or string with Unicode escapes"),
        ('SELECT u&"x"', "a name or string with Unicode escapes"),
        ("SELECT E'a'\n'b'", "a string with escapes in several parts"),
        ("SELECT E'a'\v\n'b'", "a string with escapes in several parts"),
        ("SELECT E'a' -- x\n'b'", "a string with escapes in several parts"),
        ("SELECT 'x", "a string or name without an end"),
        ("SELECT /* /* */", "a comment without an end"),
        ("SELECT $x$ $y$", "a string without an end"),
        ("SELECT $1", "a parameter"),
        ("SELECT '\0'", "a NUL character"),
        ("SELECT " + "x" * 50_000, "longer than 50000 characters"),
        ("SELECT " + "é" * 32, "a name of more than 63 bytes"),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT 1", "DELETE"),
        ("WITH x AS (SELECT 1) UPDATE t SET a = 1", "UPDATE"),
        ("SELECT * INTO x FROM t", "INTO"),
        ('SELECT 1 "as" INTO x', "INTO"),
        ("SELECT * FROM t FOR NO KEY UPDATE", "FOR NO"),
        ("SELECT 1 OPERATOR(pg_catalog.+) 1", "OPERATOR()"),
        ("SELECT * FROM pg_class", "pg_class, a name of the system"),
        ('SELECT "pg_class".x FROM t', "pg_class, a name of the system"),
        ("SELECT 'x'::regclass", "the type regclass"),
        ("SELECT user", "user, the name of the role that asks (a column of this name has to be quoted)"),
        ("SELECT * FROM information_schema.routines", "information_schema.routines"),
        ("SELECT '<a/>'::xml", "XML"),
        ("SELECT lpad('x', 10001)", "lpad with a length that is not a plain number up to 10000"),
        ("SELECT lpad('x', n) FROM t", "lpad with a length that is not a plain number up to 10000"),
        ("SELECT rpad('x', 1 + (2, 3))", "rpad with a length that is not a plain number up to 10000"),
        ("SELECT format('%99999s', x)", "format with a length that is not a plain number up to 10000"),
        ("SELECT format('%-*s', 5, x)", "format with a length that is not a plain number up to 10000"),
        ("SELECT format(E'%\\x39' '9999s', x)", "a string with escapes in several parts"),
        ("SELECT format(y, x)", "format with a length that is not a plain number up to 10000"),
    ],
)
def test_what_is_refused(sql: str, reason: str) -> None:
    assert refusal(sql) == reason


def test_tokens_follow_the_rules_of_the_server() -> None:
    assert [token.text for token in tokenize("SELECT a.\"B\"\"c\", 'it''s', 1.5 /* x */ <> $q$'$q$;")] == [
        *("select", "a", ".", 'B"c', ",", "'it''s'", ",", "1", ".", "5", "<", ">", "$q$'$q$", ";")
    ]


def test_what_the_text_alone_shows_is_refused_without_a_server() -> None:
    """All but functions, whose names the server knows, and rights, which it checks."""
    text_alone = {
        *("write", "write in a query", "schema", "roles and databases", "maintenance", "transaction"),
        *("no query", "catalogues", "settings", "XML"),
    }
    let_through = [
        case.sql
        for case in read_corpus("postgresql")
        if case.family in text_alone and case.allowed == {"refused"} and not refusal(case.sql)
    ]
    functions = re.compile(
        r"\b(set_config|current_setting|has_table_privilege|obj_description|to_regclass|xpath)\(|SELECT FROM"
    )
    assert [sql for sql in let_through if not functions.search(sql)] == []


def golds(root: Path) -> list[str]:
    """Statements that people wrote for PostgreSQL; of columns in braces all are taken."""
    bird = json.loads((root / "bird" / "mini_dev_postgresql.json").read_text())
    with (root / "defog" / "questions_gen_postgres.csv").open(newline="") as file:
        defog = [sql for row in csv.DictReader(file) for sql in row["query"].split(";") if sql.strip()]
    return [item["SQL"] for item in bird] + [re.sub(r"\{([^}]*)\}", lambda found: found[1] or "1", s) for s in defog]


def test_no_gold_of_the_benchmarks_is_refused(data_root: Path) -> None:
    statements = golds(data_root)
    assert len(statements) > 700
    assert [(reason, sql) for sql in statements if (reason := refusal(sql))] == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p4ss@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p@ss@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u:p/ss?#@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:a@h1:1,h2:2/d", "postgresql://u:***@h1:1,h2:2/d"),
        ("postgresql://u@h/d?password=p4ss&sslmode=require", "postgresql://u@h/d?password=***&sslmode=require"),
        ("postgresql://u@h/d?sslmode=require&sslpassword=p4ss", "postgresql://u@h/d?sslmode=require&sslpassword=***"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("mysql://root:p4ss@h/d", "mysql://root:***@h/d"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
    try:
        assert str(locate(url)) == shown
    except UserError as error:
        assert shown in str(error)


def test_a_url_that_is_none_says_so_without_its_password() -> None:
    for url in ("postgresql://u:p4/ss@h/d", "postgresql://u:p4%zz@h/d", "postgresql://u:p4@h/d?nonsense=1"):
        with pytest.raises(UserError, match="not an address of PostgreSQL") as error:
            connection_string(url, {})
        assert "p4" not in str(error.value)


def test_settings_of_the_url_do_not_replace_ours() -> None:
    url = "postgresql://u@h/d?options=-c%20statement_timeout%3D0%20-c%20search_path%3Dsales&application_name=mine"
    options = connection_string(url, {"statement_timeout": "5ms"})
    assert options.index("statement_timeout=0") < options.index("statement_timeout=5ms")
    assert "search_path=sales" in options and "mine" not in options and "application_name=spftsql" in options


def test_locations_are_what_was_written() -> None:
    for url in ("postgresql://u:x@h/d", "sqlite:////tmp/a.db", "duckdb:////tmp/b"):
        assert locate(locate(url).url) == locate(url)
    assert locate("postgres://h/d") == Location("postgresql", "postgresql://h/d")


def test_a_recipe_holds_no_password(tmp_path: Path) -> None:
    recipe = tmp_path / "shop.yaml"
    tree = "{{extends: demo, data: {{databases: [{{name: shop, url: 'postgresql://{login}@h/d'}}]}}}}"
    recipe.write_text(tree.format(login="reader"))
    assert resolve(str(recipe), []).data.databases[0].url == "postgresql://reader@h/d"
    recipe.write_text(tree.format(login="reader:p4ss"))
    with pytest.raises(UserError, match="leave the password out of the recipe") as error:
        resolve(str(recipe), [])
    assert "p4ss" not in str(error.value)
