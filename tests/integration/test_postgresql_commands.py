"""The schema of a PostgreSQL server, and the commands about one."""

import json
import re
import sys
from pathlib import Path

import pytest

from spftsql.cli import main
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import ForeignKey
from spftsql.databases.schema_text import schema_text
from spftsql.errors import Fault, UserError
from spftsql.sandbox.execute import Sandbox
from tests.postgres import ESCAPED, PASSWORD, Server
from tests.towns import CONFIG

pytestmark = pytest.mark.integration


def test_schema_of_a_server(towns: str) -> None:
    schema = reflect("towns", towns, ["shop.mayor = town.name"])
    assert [table.name for table in schema.tables] == ["town", "shop", "sale", "large"]
    assert schema.dialect == "postgres"
    town = schema.table("town")
    assert town is not None and (town.rows, town.primary_key, town.comment) == (2, ("id",), "where people live")
    kinds = {column.name: (column.kind, column.sql_type) for column in town.columns}
    assert kinds == {
        "id": ("number", "integer"),
        "name": ("text", "text"),
        "founded": ("date", "date"),
        "size": ("number", "integer"),
        "order": ("text", "text"),
        "info": ("other", "json"),
        "facts": ("other", "jsonb"),
        "tags": ("other", "text[]"),
        "place": ("other", "point"),
        "mood": ("text", "mood"),
        "walled": ("boolean", "boolean"),
        "tax": ("number", "numeric(10,2)"),
        "seen": ("date", "timestamp with time zone"),
        "away": ("other", "interval"),
    }
    name, size = town.column("name"), town.column("size")
    assert name is not None and (name.comment, name.distinct, name.samples) == (
        "what people call it",
        2,
        ("Köln", "Ulm"),
    )
    assert size is not None and (size.nulls, size.samples) == (1, (126000,))
    assert schema.foreign_keys == (
        ForeignKey("shop", "town_id", "town", "id"),
        ForeignKey("shop", "mayor", "town", "name"),
    )
    assert "name (text; what people call it; e.g. Köln | Ulm)" in schema_text(schema)


def test_a_key_of_several_columns_stays_together(postgres: Server) -> None:
    postgres.run("CREATE DATABASE campus")
    postgres.run(
        "CREATE TABLE course (number int, dept text, PRIMARY KEY (dept, number));"
        "CREATE TABLE held (room text, number int, dept text, FOREIGN KEY (dept, number) REFERENCES course);"
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
        "campus",
    )
    text = schema_text(reflect("campus", postgres.url("campus")))
    assert text.endswith("\nheld.dept = course.dept AND held.number = course.number")


def spftsql(
    *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; no password in any of them."""
    monkeypatch.setattr(sys, "argv", ["spftsql", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not any(secret in out + err for secret in (PASSWORD, ESCAPED, "pw-4Xf"))
    return int(ended.value.code or 0), out, err


def test_verify_and_schema_commands(
    towns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        return spftsql(*arguments, monkeypatch=monkeypatch, capsys=capsys)

    code, out, err = run("verify", "--db", towns, "--sql", "SELECT 1.0", "--gold", "SELECT 1", "--json")
    verdict = json.loads(out)
    assert (code, verdict["status"], verdict["fault"], err) == (0, "equal", None, "")
    assert verdict["engine"].startswith("postgresql ")
    code, out, _ = run("verify", "--db", towns, "--sql", "SELECT pg_sleep(9)")
    assert code == 3 and out.startswith("error (refused: function pg_sleep)")
    assert run("verify", "--db", towns, "--sql", "SELECT nope")[0] == 1
    code, out, _ = run("schema", towns)
    assert code == 0 and "shop.town_id = town.id" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: url.replace("/towns", "/nowhere"), 'database "nowhere" does not exist'),
        (lambda url: url.replace(ESCAPED, "pw-4Xf-wrong"), "password authentication failed"),
        (lambda url: url.replace("reader", "nobody"), 'password authentication failed for user "nobody"'),
        (lambda url: re.sub(r":\d+/", ":1/", url), "Connection refused"),
        (lambda url: url.replace("127.0.0.1", "no-such-host.invalid"), "no-such-host.invalid"),
        (lambda url: url.replace(ESCAPED, "pw-4Xf/9&?"), "write postgresql://USER@HOST:PORT/DATABASE"),
        (lambda url: url.replace("postgresql:", "mysql:"), "not an address that can be used"),
        (lambda url: f"{url}?sslmode=sometimes", "sslmode"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "schema"])
def test_a_wrong_address_is_one_line(
    command: str, change: object, message: str, towns: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert callable(change)
    url = change(towns)
    arguments = ["verify", "--db", url, "--sql", "SELECT 1"] if command == "verify" else ["schema", url]
    code, out, err = spftsql(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and out == ""
    assert message in err and len(err.strip().splitlines()) == 1


def test_a_superuser_is_refused(
    towns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = towns.replace("reader", "postgres")
    code, _, err = spftsql("verify", "--db", url, "--sql", "SELECT 1", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "the role postgres is a superuser" in err and "CREATE ROLE reader" in err


def test_a_role_that_may_write_is_warned_about(
    postgres: Server, towns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    postgres.run("CREATE ROLE clerk LOGIN PASSWORD 'x'")
    postgres.run("GRANT SELECT, INSERT ON shop, sale TO clerk", "towns")
    url = f"postgresql://clerk:x@127.0.0.1:{postgres.port}/towns"
    code, out, err = spftsql(
        "verify", "--db", url, "--sql", "SELECT count(*) FROM shop", monkeypatch=monkeypatch, capsys=capsys
    )
    assert code == 0 and out.startswith("ran")
    assert "the role clerk may write to 2 tables (shop, sale)" in err
    with Sandbox(CONFIG) as sandbox:
        (run,) = sandbox.execute(url, ["INSERT INTO shop VALUES (9999, 1, 'x', 'y')"])
        assert run.reason == "refused: not a query: INSERT"


def test_the_password_may_be_outside_the_url(
    postgres: Server, towns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = towns.replace(f":{ESCAPED}", "")
    with Sandbox(CONFIG) as sandbox, pytest.raises(Fault, match="no password supplied"):
        sandbox.execute(url, ["SELECT 1"])
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with Sandbox(CONFIG) as sandbox:
        assert sandbox.execute(url, ["SELECT 1"])[0].rows == [(1,)]
    monkeypatch.delenv("PGPASSWORD")
    (tmp_path / "passwords").write_text(f"127.0.0.1:{postgres.port}:*:reader:{PASSWORD}\n")
    (tmp_path / "passwords").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "passwords"))
    with Sandbox(CONFIG) as sandbox:
        assert sandbox.execute(url, ["SELECT 1"])[0].rows == [(1,)]
    assert reflect("towns", url).tables


def test_a_database_without_tables_to_read(postgres: Server) -> None:
    with pytest.raises(UserError, match="has no tables that its role may read"):
        reflect("empty", postgres.url("postgres"))
