"""`score`: predictions against golds over the real sandbox, with every metric, and what it says about the result."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from spftsql.errors import UserError
from spftsql.evaluation.passes import instance_name, over_instances
from spftsql.evaluation.score_page import page
from spftsql.evaluation.score_report import markdown
from spftsql.evaluation.score_result import NO_DATABASE, ScoreResult
from spftsql.evaluation.scoring import LIMITS, ScoreOptions, limits, score, spider_text
from spftsql.evaluation.threads import Progress
from spftsql.records import Verdict
from spftsql.sandbox.process import ChildProcess

GOLDS = [
    "SELECT name FROM city ORDER BY population",
    "SELECT DISTINCT name FROM city",
    'SELECT name FROM city WHERE name = "Oslo"',
    "SELECT count(*) FROM city",
    "SELECT broken FROM city",
]
ANSWERS = [
    "SELECT name FROM city ORDER BY population DESC",
    "SELECT name FROM city",
    "SELECT 'Oslo' ;",
    "SELECT nothing_here FROM city",
    "SELECT broken FROM city",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "towns.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE city (name TEXT, population INTEGER);"
            "INSERT INTO city VALUES ('Oslo', 700000), ('Bergen', 290000), ('Bergen', 1);"
        )
    rows = [{"db_id": "towns", "question": f"question {i}", "sql": sql} for i, sql in enumerate(GOLDS)]
    write_questions(tmp_path, rows)
    return tmp_path


@pytest.fixture
def published() -> Path:
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        pytest.skip("SPFTSQL_DATA is not set")
    return Path(data)


def write_questions(root: Path, rows: list[dict[str, str]]) -> None:
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Titles:
    """Stands in for progress bars, and remembers what was begun and how far it went."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def __call__(self, title: str) -> Iterator[Progress]:
        steps = self.seen.setdefault(title, [])
        yield lambda done, total: steps.append((done, total))


def run(benchmark: str, root: Path, predictions: Path, **options: Any) -> ScoreResult:
    return score(ScoreOptions(benchmark, root, predictions, **options), Titles())


def scored(root: Path, answers: list[str], **options: Any) -> ScoreResult:
    predictions = root / "predictions.sql"
    predictions.write_text("\n".join(answers) + "\n")
    return run("jsonl", root, predictions, **options)


def verdicts(result: ScoreResult) -> list[str]:
    return [item.verdict for item in result.items]


def test_every_prediction_gets_a_verdict(root: Path) -> None:
    (root / "predictions.sql").write_text("\n".join(ANSWERS))
    titles = Titles()
    result = score(ScoreOptions("jsonl", root, root / "predictions.sql"), titles)
    assert verdicts(result) == ["different", "different", "equal", "error", "unverifiable"]
    assert result.accuracy == pytest.approx(0.2)
    assert titles.seen["score"][0] == (0, 10) and titles.seen["score"][-1] == (10, 10)  # predictions and golds
    tree = json.loads(result.to_json())
    assert list(tree)[:4] == ["accuracy", "policy", "versions", "items"]
    assert tree["policy"] == "strict"
    assert set(tree["versions"]) == {"spftsql", "benchmark", "databases", "engine"}
    assert tree["versions"]["engine"].startswith("sqlite 3.")
    assert list(tree["items"][0])[:4] == ["index", "db_id", "verdict", "reason"]
    assert [item["index"] for item in tree["items"]] == [0, 1, 2, 3, 4]
    assert (tree["n"], tree["right"], tree["unverifiable"]) == (5, 1, 1)
    assert tree["accuracy_of_verifiable"] == pytest.approx(0.25)
    assert tree["interval"] == pytest.approx([0.0362, 0.6245], abs=1e-4)
    assert [level["hardness"] for level in tree["by_hardness"]] == ["easy"]


def test_the_ceiling_is_what_the_golds_reach(root: Path) -> None:
    result = scored(root, ANSWERS)
    assert result.ceiling == pytest.approx(0.8)
    assert [bool(item.gold) for item in result.items] == [False, False, False, False, True]
    assert json.loads(result.to_json())["items"][4]["gold"].startswith("gold error: no such column")
    perfect = scored(root, GOLDS)
    assert perfect.accuracy == perfect.ceiling


def test_policies_differ_where_they_should(root: Path) -> None:
    assert verdicts(scored(root, ANSWERS, policy="bird"))[:2] == ["equal", "equal"]
    assert verdicts(scored(root, ANSWERS, policy="spider"))[:2] == ["different", "equal"]
    kept = scored(root, ANSWERS, policy="spider", keep_distinct=True)
    assert verdicts(kept)[:2] == ["different", "different"]


def test_more_workers_give_the_same_result(root: Path) -> None:
    rows = [{"db_id": "towns", "question": str(i), "sql": f"SELECT {i} FROM city"} for i in range(100)]
    write_questions(root, rows)
    answers = [f"SELECT {i - i % 2} FROM city" for i in range(100)]
    alone, shared = (scored(root, answers, workers=workers) for workers in (1, 2))
    assert alone == shared
    assert alone.accuracy == 0.5


def test_questions_without_a_database_count_as_wrong(root: Path) -> None:
    rows = [{"db_id": name, "question": "q", "sql": "SELECT count(*) FROM city"} for name in ("towns", "atlantis")]
    write_questions(root, rows)
    result = scored(root, ["SELECT 3", "SELECT 3"])
    assert verdicts(result) == ["equal", "unverifiable"]
    assert (result.items[1].reason, result.items[1].gold) == (NO_DATABASE, NO_DATABASE)
    assert (result.accuracy, result.ceiling) == (0.5, 0.5)
    named = scored(root, ["SELECT 3", "SELECT 3"], named=(f"atlantis={root / 'towns.sqlite'}",))
    assert verdicts(named) == ["equal", "equal"]
    (root / "towns.sqlite").unlink()
    with pytest.raises(UserError, match="no database file for any question"):
        scored(root, ["SELECT 3", "SELECT 3"])


def test_metrics_that_are_asked_for(root: Path) -> None:
    write_questions(root, [{"db_id": "towns", "question": str(i), "sql": sql} for i, sql in enumerate(GOLDS[:4])])
    answers = ["SELECT name FROM city", "SELECT DISTINCT name FROM city", "SELECT 'Oslo'", "SELECT nothing FROM city"]
    result = scored(root, answers, metrics=("exact-match", "soft-f1", "ves", "r-ves"), repeats=10)
    assert result.metrics == ("ex", "exact-match", "soft-f1", "ves", "r-ves")
    by_item = [item.values for item in result.items]
    assert [values["ex"] for values in by_item] == [0, 1, 1, 0]
    assert [values["exact-match"] for values in by_item] == [0, 1, 0, 0]
    assert [values["soft-f1"] for values in by_item] == pytest.approx([1 / 3, 1, 1, 0], abs=0.34)
    assert by_item[1]["soft-f1"] == by_item[2]["soft-f1"] == 1 and by_item[3]["soft-f1"] == 0
    for name in ("ves", "r-ves"):
        assert [values[name] > 0 for values in by_item] == [False, True, True, False]
    assert len(result.rounds) == 5 and max(result.rounds) == pytest.approx(
        sum(values["r-ves"] for values in by_item) / 4
    )
    tree = json.loads(result.to_json())
    assert tree["metrics"]["exact-match"] == {
        "value": 0.25,
        "n": 4,
        "right": 1,
        "interval": pytest.approx([0.0456, 0.6994], abs=1e-4),
    }
    assert set(tree["components"]["select"]) == {"accuracy", "recall", "f1"}
    assert set(tree["items"][0]["metrics"]) == set(result.metrics)


def test_against_another_file(root: Path) -> None:
    better = root / "better.json"
    better.write_text(json.dumps({str(i): sql for i, sql in enumerate([*GOLDS[:2], "SELECT 1", GOLDS[3], ""])}))
    found = scored(root, ANSWERS, against=better).against
    assert found is not None
    assert (found.only_here, found.only_there, found.pairing) == (1, 3, "by number")
    assert found.p == pytest.approx(0.625)
    assert found.difference == pytest.approx(-0.4)
    assert found.interval[0] < -0.4 < found.interval[1]
    tree = json.loads(scored(root, ANSWERS, against=better).to_json())
    assert tree["against"]["accuracy"] == pytest.approx(0.6)


def verdict(status: str, reason: str = "", fault: str | None = None) -> Verdict:
    return Verdict("x", "towns", status, reason, 1.0, 1, False, "", "sqlite", fault)


@pytest.mark.parametrize(
    ("others", "status", "reason"),
    [
        ([], "equal", ""),
        ([(1, verdict("equal")), (2, verdict("equal"))], "equal", ""),
        ([(1, verdict("equal")), (4, verdict("different", "values"))], "different", "instance 4: values"),
        ([(1, verdict("error", "no")), (2, verdict("different", "values"))], "error", "instance 1: no"),
        ([(1, verdict("unverifiable", "gold timeout: long")), (2, verdict("equal"))], "equal", ""),
        (
            [(1, verdict("unverifiable", "not deterministic: random()"))],
            "unverifiable",
            "instance 1: not deterministic: random()",
        ),
    ],
)
def test_the_first_instance_that_is_not_equal_decides(
    others: list[tuple[int, Verdict]], status: str, reason: str
) -> None:
    decided = over_instances(verdict("equal"), others)
    assert (decided.status, decided.reason, decided.fault) == (status, reason, None)


def test_a_fault_on_an_instance_is_a_fault() -> None:
    decided = over_instances(verdict("equal"), [(1, verdict("unverifiable", "fault", "disk full"))])
    assert decided.fault == "instance 1: disk full"


def test_luck_on_one_database_is_found_out_by_a_suite(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPFTSQL_CACHE", str(tmp_path / "cache"))
    rows = [
        {"db_id": "towns", "question": str(i), "sql": "SELECT count(*) FROM city WHERE population > 1000"}
        for i in range(3)
    ]
    write_questions(root, rows)
    answers = ["SELECT count(*) FROM city WHERE population > 1000", "SELECT 2", "SELECT 7"]
    result = scored(root, answers, suite=3)
    assert verdicts(result) == ["equal", "different", "different"]
    assert result.items[1].reason.startswith("instance ")
    assert result.measure == "ts"
    assert [(item.values["ex"], item.values["ts"]) for item in result.items] == [(1, 1), (1, 0), (0, 0)]
    assert result.suite is not None and result.suite.instances >= 1
    assert result.suite.killed_suite > result.suite.killed_original
    tree = json.loads(result.to_json())
    assert (tree["measure"], tree["accuracy"]) == ("ts", pytest.approx(1 / 3))
    assert tree["metrics"]["ex"]["right"] == 2


def test_options_that_do_not_go_together(root: Path) -> None:
    for options, complaint in (
        ({"metrics": ("bleu",)}, "unknown metric bleu; known: ex, ts"),
        ({"metrics": ("ts",)}, "needs --suite K"),
        ({"metrics": ("ves",), "repeats": 9}, "--repeats 9 is too few"),
        ({"workers": 0}, "at least one process"),
        ({"split": "gone"}, "gone.jsonl is missing"),
    ):
        with pytest.raises(UserError, match=complaint):
            scored(root, ANSWERS, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown benchmark wikisql"):
        run("wikisql", root, root / "predictions.sql")
    with pytest.raises(UserError, match="--timeout nan"):
        limits(float("nan"), 1, 64)


def test_limits_are_options(root: Path) -> None:
    assert limits(30, LIMITS.max_rows, LIMITS.memory_mb) == LIMITS
    write_questions(root, [{"db_id": "towns", "question": "q", "sql": "SELECT name FROM city"}])
    result = scored(root, ["SELECT name FROM city"], limits=limits(5, 2, 256))
    assert verdicts(result) == ["unverifiable"]
    assert result.items[0].gold == "gold truncated: too many rows or bytes"
    assert result.limits["max_rows"] == 2


@pytest.mark.parametrize(
    ("sql", "without", "kept"),
    [
        ("SELECT DISTINCT a FROM t", "SELECT  a FROM t", "SELECT DISTINCT a FROM t"),
        ("SELECT count(distinct a) FROM t", "SELECT count( a) FROM t", "SELECT count(distinct a) FROM t"),
        ("SELECT a WHERE b > = 1 AND c ! = 2", "SELECT a WHERE b >= 1 AND c != 2", "SELECT a WHERE b >= 1 AND c != 2"),
        (
            "SELECT 'distinct > = it''s' FROM t",
            "SELECT 'distinct > = it''s' FROM t",
            "SELECT 'distinct > = it''s' FROM t",
        ),
        ('SELECT "distinct" FROM t', 'SELECT "distinct" FROM t', 'SELECT "distinct" FROM t'),
        ("SELECT distinctive FROM t", "SELECT distinctive FROM t", "SELECT distinctive FROM t"),
    ],
)
def test_spiders_text(sql: str, without: str, kept: str) -> None:
    assert spider_text(sql, keep_distinct=False) == without
    assert spider_text(sql, keep_distinct=True) == kept


def test_names_of_instances() -> None:
    assert (instance_name("towns", 0), instance_name("towns", 2)) == ("towns", "towns instance 2")


def test_spider_dev_agrees_with_the_official_evaluator(published: Path) -> None:
    folder = published / "predictions" / "spider-dev"
    official = json.loads((folder / "official_verdicts.json").read_text())
    name = "dail-sql/DAIL-SQL+GPT-4.txt"
    for keep_distinct, key in ((False, "exec"), (True, "exec_keep_distinct")):
        result = run("spider", published / "spider", folder / name, keep_distinct=keep_distinct)
        assert "".join("01"[right] for right in result.correct) == official[name][key]
        assert result.ceiling == 1.0


@pytest.mark.long
@pytest.mark.parametrize("keep_distinct", [False, True])
def test_all_prediction_files_agree_with_the_official_evaluator(published: Path, keep_distinct: bool) -> None:
    folder = published / "predictions" / "spider-dev"
    official = json.loads((folder / "official_verdicts.json").read_text())
    assert len(official) == 5
    for name, verdicts in official.items():
        result = run("spider", published / "spider", folder / name, keep_distinct=keep_distinct)
        expected = verdicts["exec_keep_distinct" if keep_distinct else "exec"]
        assert "".join("01"[right] for right in result.correct) == expected, name
        assert result.versions["engine"].startswith("sqlite 3.")


def test_rows_of_a_table_in_its_own_order_agree_too(published: Path) -> None:
    folder = published / "predictions" / "spider-dev"
    official = json.loads((folder / "official_verdicts.json").read_text())
    name = "din-sql/CodeX/CodeX_few-shot.csv"
    result = run("spider", published / "spider", folder / name)
    assert "".join("01"[right] for right in result.correct) == official[name]["exec"]


@pytest.mark.parametrize(("name", "failing"), [("spider-syn", 0), ("spider-dk", 1), ("spider-realistic", 0)])
def test_golds_of_the_robustness_sets(published: Path, tmp_path: Path, name: str, failing: int) -> None:
    from spftsql.evaluation.sources import read_split

    questions = read_split("spider", published / name).rows
    file = tmp_path / "golds.sql"
    file.write_text("".join(f"{question.sql}\t{question.db_id}\n" for question in questions))
    result = run("spider", published / name, file)
    assert sum(bool(item.gold) for item in result.items) == failing
    assert result.accuracy == result.ceiling


def test_the_runnable_part_of_bird_dev(published: Path) -> None:
    folder = published / "predictions" / "bird-dev"
    files = {
        "codes/predict_dev-codes-7b-bird-with-evidence.json": 107,
        "bird-chatgpt/turbo_output_kg/predict_dev.json": 84,
    }
    for name, right in files.items():
        result = run("bird", published / "bird", folder / name)
        assert sum(result.correct) == right
        assert result.levels == ("simple", "moderate", "challenging")


def test_one_process_serves_all_databases_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = ChildProcess.__init__

    def counted(self: ChildProcess, *arguments: Any) -> None:
        started.append(1)
        start(self, *arguments)

    monkeypatch.setattr(ChildProcess, "__init__", counted)
    rows = []
    for number in range(4):
        path = tmp_path / "database" / f"db{number}" / f"db{number}.sqlite"
        path.parent.mkdir(parents=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE t (x)")
        rows.append({"db_id": f"db{number}", "question": "q", "sql": "SELECT count(*) FROM t"})
    write_questions(tmp_path, rows)
    assert scored(tmp_path, ["SELECT 0"] * 4, workers=1).accuracy == 1.0
    assert len(started) == 1


@pytest.mark.parametrize("policy", ["spider", "strict"])
def test_hostile_predictions_get_a_verdict_and_bring_nothing_down(root: Path, policy: str) -> None:
    deep = 20_000
    hostile = [
        "SELECT * FROM " + "(SELECT * FROM " * deep + "city" + ")" * deep,
        "SELECT " + "(" * deep + "1" + ")" * deep,
        "SELECT " + "NOT " * deep + "1",
        "SELECT " + "CASE WHEN 1 THEN " * deep + "1" + " END" * deep,
        " UNION ".join(["SELECT 1"] * deep),
        "SELECT 1 WHERE " + " AND ".join(["1"] * deep),
        "SELECT '\ud800'",
        "SELECT '\0'",
        "SELECT 1 -- \x1b[31m</script>",
        "/*" * deep,
        "DROP TABLE city",
        "SELECT count(*) FROM city; DELETE FROM city",
        "",
    ]
    rows = [{"db_id": "towns", "question": "q", "sql": "SELECT count(*) FROM city"} for _ in hostile]
    write_questions(root, rows)
    (root / "hostile.json").write_text(json.dumps(hostile))
    before = (root / "towns.sqlite").read_bytes()
    result = run("jsonl", root, root / "hostile.json", policy=policy, metrics=("exact-match", "soft-f1"), samples=True)
    assert len(result.items) == len(hostile)
    assert set(verdicts(result)) <= {"error", "different"}
    assert sum(item.values["exact-match"] for item in result.items) == 0
    assert (root / "towns.sqlite").read_bytes() == before
    for text in (result.to_json(), markdown(result), page(result)):
        text.encode("utf-8", "backslashreplace")
