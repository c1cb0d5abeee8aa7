"""The commands of README.md and docs/ about files, models and servers, run as they stand there.

`tests/fixtures/docs/commands.yaml` lists them; `tests/unit/test_docs.py` holds that nothing else is unmarked.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from spftsql.recipes import resolve
from tests.chat_server import Chat, chat_server
from tests.conftest import CHECKOUT
from tests.documented import WIDE, Command, free_port, listed, own_database, recipe_of, run, serving
from tests.made_run import make_run
from tests.postgres import PASSWORD, Server
from tests.serving import learnt_model

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(2400)]

# What the model of the runs has learnt, so that what is asked in the pages has an answer.
LESSONS = {
    "Which region sold most last year?": "SELECT region FROM orders GROUP BY region ORDER BY COUNT(*) DESC, region",
    "how many orders came from Lyon last month": "SELECT COUNT(*) FROM orders",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_root: Path, tiny_models: list[str]) -> Path:
    """A folder with what the pages speak of: databases, labels, recipes, predictions, models, runs."""
    folder = tmp_path_factory.mktemp("docs")
    own_database(folder, tiny_models[0])
    build_wide_model(folder / WIDE)
    (folder / "models" / "qwen-7b").symlink_to(folder / WIDE)
    shop = (CHECKOUT / "tests" / "fixtures" / "templates" / "shop.sql").read_text()
    with closing(sqlite3.connect(folder / "Chinook_Sqlite.sqlite")) as connection:
        connection.executescript(shop)
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE customer (city TEXT); INSERT INTO customer VALUES ('Oslo'), ('Oslo'), ('Rome');"
        )
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(folder / "events.duckdb") as events:
        events.execute("CREATE TABLE clicks AS SELECT range AS id FROM range(10)")
    (folder / "chinook.yaml").write_text(recipe_of("synthesis", "chinook"))
    (folder / "data").mkdir()
    for benchmark in ("spider-dk", "bird"):
        (folder / "data" / benchmark).symlink_to(data_root / benchmark)
    (folder / "data" / "spider").mkdir()
    for part in [*(data_root / "spider").iterdir(), data_root / "spider-syn" / "train_spider.json"]:
        (folder / "data" / "spider" / part.name).symlink_to(part)  # the training set is that of the whole download
    (folder / "cluster").symlink_to(CHECKOUT / "cluster")
    shutil.copy(
        data_root / "predictions" / "spider-dev" / "dail-sql" / "DAIL-SQL+GPT-4.txt", folder / "predictions.sql"
    )
    golds = [row["SQL"] for row in json.loads((data_root / "bird" / "dev.json").read_text())]
    for name, wrong in (("predict_dev", 7), ("baseline", 3)):
        rows = ["SELECT 1" if i % wrong == 0 else sql for i, sql in enumerate(golds)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "runs").mkdir()
    model = learnt_model(folder / "learnt", LESSONS, resolve("demo").prompt)
    for name in ("spider", "sales", "chinook"):
        make_run(folder / "made" / name)
        run_ = (folder / "made" / name / "demo").rename(folder / "runs" / name)
        places = [next(run_.glob(f"stages/train-{one}")) for one in ("round-1-*/vbi-1", "play-1-*/spft-a-1")]
        for place in places:
            shutil.copytree(model, place, dirs_exist_ok=True)
        result = json.loads((run_ / "result.json").read_text())
        result |= {"served_path": str(places[0]), "databases": {"sales": str(folder / "sales.sqlite")}}
        (run_ / "result.json").write_text(json.dumps(result))
    return folder


def build_wide_model(folder: Path) -> None:
    from spftsql.config import ScratchConfig
    from spftsql.training.scratch import build_scratch_model

    size = ScratchConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64, vocabulary=500)
    text = "which artists have albums ? SELECT name FROM table WHERE text ; number primary key e.g. values"
    build_scratch_model(size, 1024, [text] * 8, folder, 0)


@pytest.mark.parametrize("command", listed("files"), ids=lambda command: command.text)
def test_commands_about_files(folder: Path, command: Command) -> None:
    done = run(folder, command)
    assert done.stdout or done.stderr
    assert "Loading weights" not in done.stderr  # a bar of a library's own


@pytest.mark.parametrize("command", listed("scores"), ids=lambda command: command.text)
def test_commands_that_score(folder: Path, command: Command) -> None:
    assert "accuracy" in run(folder, command).stdout


@pytest.mark.parametrize("command", listed("servers"), ids=lambda command: command.text)
def test_commands_about_servers(folder: Path, command: Command, sales: str) -> None:
    assert run(folder, command, {"sales": sales}, PGPASSWORD=PASSWORD).stdout


@pytest.fixture(scope="module")
def others() -> Iterator[Chat]:
    """An endpoint of somebody else, which answers all questions with the same statement."""
    with chat_server(Chat(lambda question: ["SELECT 1"])) as chat:
        yield chat


@pytest.mark.parametrize("command", listed("models"), ids=lambda command: command.text)
def test_commands_about_models(folder: Path, others: Chat, command: Command) -> None:
    done = run(folder, command, {"endpoint of others": others.url}, MY_KEY="a key")
    assert "execution accuracy" in done.stdout and "4 of " in done.stdout
    if "--endpoint" in command.text:
        assert others.keys == {"Bearer a key"} and len(others.bodies) == 8
    if "--html" in command.text:
        assert "<html" in (folder / "bird.html").read_text()


def endpoint() -> dict[str, str]:
    port = free_port()
    return {"port": str(port), "endpoint": f"http://127.0.0.1:{port}"}


def test_the_session_with_a_database_of_ones_own(folder: Path) -> None:
    serve, ask = listed("own-database")
    places = endpoint()
    with serving(folder, serve, places):
        said = run(folder, ask, places).stdout
        assert "SELECT region FROM orders" in said and said.index("north") < said.index("south")


def test_the_session_with_two_databases(folder: Path, sales: str) -> None:
    serve, ask, chat = listed("two-databases")
    places = {**endpoint(), "warehouse": sales}
    with serving(folder, serve, places, PGPASSWORD=PASSWORD):
        assert "1 rows" in run(folder, ask, places).stdout
        lines = ["how many orders came from Lyon last month", "/db wh", "/sql SELECT max(id) AS latest FROM orders"]
        said = run(folder, chat, places, answer="\n".join(lines)).stdout
        assert said.startswith("Database sales of sales, wh.") and "COUNT(*)" in said and "latest" in said


def test_the_session_with_keys(folder: Path) -> None:
    create, serve = listed("keys")
    _, ask = listed("own-database")
    places = endpoint()
    key = run(folder, create).stdout.strip()
    with serving(folder, serve, places):
        assert "north" in run(folder, ask, places, SPFTSQL_API_KEY=key).stdout
        refused = run(folder, Command(ask.text, ask.more, exit=2), places, SPFTSQL_API_KEY="another").stderr
        assert refused.startswith("spftsql: ") and refused.count("\n") == 1


@pytest.fixture(scope="module")
def sales(postgres: Server) -> str:
    postgres.run("CREATE DATABASE docs_sales")
    postgres.run(
        "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1), (2); "
        "GRANT SELECT ON orders TO reader",
        "docs_sales",
    )
    return postgres.url("docs_sales")
