"""Whole files of real predictions: beside a bare `sqlite3` loop, and beside the official evaluator."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Ratio, in_turns, ratio, seconds
from spftsql.evaluation.scoring import LIMITS, spider_text
from spftsql.records import VerificationRequest
from spftsql.verification.batches import batches_by_database
from spftsql.verification.worker import Verifier

FIRST = "dail-sql/DAIL-SQL+GPT-4.txt"
SECOND = "graphix/predict.sql"
_BATCH = 32
_WARM_UP = "SELECT 1"


def requests(data: Path, file: str) -> list[VerificationRequest]:
    """The questions of Spider dev with a file of predictions, as `spftsql score` sends them to its workers."""
    golds = [line.split("\t") for line in (data / "spider" / "dev_gold.sql").read_text().splitlines() if line.strip()]
    predicted = (data / "predictions" / "spider-dev" / file).read_text().splitlines()
    texts = [line.split("\t")[0] for line in predicted]
    return [
        VerificationRequest(str(i), db, spider_text(sql, False), spider_text(gold, False), "spider")
        for i, ((gold, db), sql) in enumerate(zip(golds, texts, strict=True))
    ]


def databases(data: Path, asked: Sequence[VerificationRequest]) -> dict[str, Path]:
    """The database files that the requests are about."""
    folder = data / "spider" / "database"
    return {name: folder / name / f"{name}.sqlite" for name in {request.db_id for request in asked}}


def beside_bare_loop(data: Path, repeats: int) -> dict[str, Ratio | float]:
    """One worker over a bare loop: cold, and for another file while the golds' results are kept."""
    first, second = requests(data, FIRST), requests(data, SECOND)
    files = databases(data, first)
    name, file = next(iter(files.items()))

    def bare() -> float:
        return seconds(lambda: _bare_loop(first, files))

    def cold() -> float:
        with Verifier(files, LIMITS) as verifier:
            verifier.run(name, _WARM_UP)  # starts the child
            return seconds(lambda: _verify(verifier, first))

    def warm() -> float:
        with Verifier(files, LIMITS) as verifier:
            _verify(verifier, first)
            return seconds(lambda: _verify(verifier, second))

    def bare_second() -> float:
        return seconds(lambda: _bare_loop(second, files))

    assert file.is_file()
    bare_times, cold_times, warm_times, second_times = in_turns(repeats, bare, cold, warm, bare_second)
    return {
        "vs_bare": ratio(cold_times, bare_times),
        "vs_bare_golds_kept": ratio(warm_times, second_times),
        "bare_items_per_second": len(first) / min(bare_times),
    }


def _verify(verifier: Verifier, asked: Sequence[VerificationRequest]) -> None:
    for batch in batches_by_database(asked, _BATCH):
        verdicts = verifier.verify(batch)
        assert not any(verdict.fault for verdict in verdicts)


def _bare_loop(asked: Sequence[VerificationRequest], files: dict[str, Path]) -> int:
    """What somebody would write in ten minutes: no limits, no fence, no permutation of columns."""
    connections: dict[str, sqlite3.Connection] = {}
    right = 0
    for request in asked:
        if request.db_id not in connections:
            address = f"file:{files[request.db_id]}?mode=ro"
            connections[request.db_id] = sqlite3.connect(address, uri=True)
            connections[request.db_id].text_factory = lambda raw: raw.decode(errors="ignore")
        connection = connections[request.db_id]
        try:
            predicted = connection.execute(request.sql).fetchall()
        except (sqlite3.Error, sqlite3.Warning):
            continue
        gold = connection.execute(request.gold_sql or "").fetchall()
        right += Counter(predicted) == Counter(gold)
    for connection in connections.values():
        connection.close()
    return right


def beside_official(data: Path, checkout: Path, repeats: int) -> dict[str, Ratio | float]:
    """The whole commands, start-up included, on one file: the official evaluator over ours with two workers.

    Raises `SystemExit` when the two do not find the same accuracy, or the evaluator does not run.
    """
    predictions = data / "predictions" / "spider-dev" / FIRST
    with tempfile.TemporaryDirectory(prefix="spftsql-benchmark-") as folder:
        copies, found = Path(folder) / "database", Path(folder) / "ours.json"
        shutil.copytree(data / "spider" / "database", copies)  # the original opens its databases for writing
        theirs = [sys.executable, "-c", _RUN_OFFICIAL, str(checkout), "--etype", "exec", "--db", str(copies)]
        theirs += ["--gold", str(data / "spider" / "dev_gold.sql"), "--pred", str(predictions)]
        theirs += ["--table", str(data / "spider" / "tables.json")]
        ours = [sys.executable, "-m", "spftsql", "score", "--benchmark", "spider", "--root", str(data / "spider")]
        ours += ["--predictions", str(predictions), "--workers", "2", "--json", str(found)]
        # Each run of ours has a cache of its own, so that nothing of the run before helps it.
        cold = in_turns(
            repeats,
            lambda: seconds(lambda: _command(theirs)),
            lambda: seconds(lambda: _command(ours, cache=tempfile.mkdtemp(dir=folder))),
            lambda: seconds(lambda: _command(ours, cache=str(Path(folder) / "kept"))),
        )
        accuracy = json.loads(found.read_text())["accuracy"]
        official = _official_accuracy(_command(theirs))
        if abs(accuracy - official) > 0.0006:
            raise SystemExit(f"the official evaluator finds {official}, spftsql {accuracy:.4f}: not comparable")
    return {
        "vs_official": ratio(cold[0], cold[1]),
        "vs_official_golds_kept": ratio(cold[0][1:], cold[2][1:]),
        "official_seconds": min(cold[0]),
        "score_seconds": min(cold[1]),
    }


# nltk's `punkt` data is a download of its own; its Treebank tokenizer gives the same verdicts.
_RUN_OFFICIAL = """
import runpy, sys
import nltk
from nltk.tokenize import NLTKWordTokenizer
nltk.word_tokenize = NLTKWordTokenizer().tokenize
sys.path.insert(0, sys.argv[1])
sys.argv = [sys.argv[1] + "/evaluation.py", *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _command(arguments: Sequence[str], cache: str | None = None) -> str:
    environment = dict(os.environ) | ({"SPFTSQL_CACHE": cache} if cache else {})
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SystemExit(f"{arguments[1:3]} failed: {lines[-1] if lines else done.returncode}")
    return done.stdout


def _official_accuracy(output: str) -> float:
    (line,) = (line for line in output.splitlines() if line.startswith("execution "))
    return float(line.split()[-1])
