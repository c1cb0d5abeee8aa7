"""A run directory as the loop leaves it, made from its own row types without a model: for who reads runs."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from spftsql.recipes import resolve
from spftsql.records import (
    Example,
    GenerationRequest,
    PairRow,
    Sample,
    TrainRow,
    Verdict,
    VerificationRequest,
    write_records,
)
from spftsql.runs import Run
from spftsql.selfplay.gate import Decision
from spftsql.selfplay.quarantine import FILE as QUARANTINE
from spftsql.selfplay.quarantine import Contradiction, quarantine_lines
from spftsql.selfplay.table import Result, Row
from spftsql.synthesis.accepting import Tally, counts_of

HOSTILE = "</pre></td><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
CANDIDATES = {"sft": 0.35, "vbi-1": 0.55, "control": 0.4, "spft-a-1": 0.62}
FOLD_LABELS = 20
LEVELS = ("easy", "medium", "hard", "extra")
GOLD, WRONG = "SELECT name, population FROM city WHERE population > {}", "SELECT name FROM city WHERE country = '{}'"


def make_run(folder: Path, questions: int = 60, pairs: int = 40, finished: bool = True, folds: int = 0) -> Path:
    """The run `demo` below `folder`: labels, one VBI round, one iteration of self-play, the gate's decisions.

    With `folds` the loop is played for each of them before, and its `FOLD_LABELS` labels decide at the gate too.
    """
    run = Run(resolve("demo", [f"run_dir={folder}", "generation.gpus=1"]))
    database = run.root / "towns.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript("CREATE TABLE city (name TEXT, country TEXT, population INTEGER);")
        rows = [(f"Town {i}", HOSTILE if i == 3 else "Norway", 1000 * i) for i in range(20)]
        connection.executemany("INSERT INTO city VALUES (?, ?, ?)", rows)
        connection.commit()
    exams = {name: _questions(name, questions) for name in ("selection", "play", "gate", "test")}
    run.event("label-set-aside", set="labels", index=3, id="x", reason=f"error: {HOSTILE}")
    for fold in range(1, folds + 1):
        _play_fold(run, fold)
    _train(run, "labels", {"sft": "sft", "question-0": "sft"})
    run.event("recombined", round=1, kept=pairs // 4, dropped={"constant-null": 3})
    run.event("synthesized", round=1, **counts_of(Tally(3 * pairs, pairs, Counter(empty=pairs))))
    run.event("phrased", round=1, statements=pairs, pairs=pairs, dropped={"a value is not said": 3})
    write_records(run.root / "pairs" / "round-1.parquet", [_pair(i) for i in range(pairs)], PairRow)
    _train(run, "round-1", {"vbi-1": "sft", "control": "sft"})
    _answer(run, "round-1", ["sft", "vbi-1", "control"], exams)
    run.event("play", mode="spft-a", iteration=1, main="vbi-1", opponent="sft", opponent_accuracy=0.35, rows=40,
              near_misses=10, left_out={"timeout": 2})  # fmt: skip
    _train(run, "play-1", {"spft-a-1": "spft-a"})
    if not finished:
        run.close()
        return run.root
    _answer(run, "play-1", ["spft-a-1"], exams)
    asked = questions + folds * FOLD_LABELS
    decisions = (
        Decision("vbi-1", "sft", "better", 14, 2, asked, 0.004, None),
        Decision("spft-a-1", "vbi-1", "undecided", 5, 2, asked, 0.45, 379),
    )
    for decision in decisions:
        run.event("gate", **asdict(decision))
    run.event("gate-synthetic", **asdict(decisions[1]))
    run.event("asked-again", stage="generate-round-1", requests=3, of=4 * questions)
    run.event("unguarded", why="a selection set of 5 questions cannot show a collapse")
    run.event("stopped", mode="spft-a", iteration=2, why=f"collapse: accuracy fell {HOSTILE}; vbi-1 is kept")
    wrong = Contradiction("play", "play-005", "towns", f"Which? {HOSTILE}", "SELECT 1", "SELECT 2", ("sft", "vbi-1"), 3)
    run.write(QUARANTINE, quarantine_lines([wrong]))
    run.event("contradicted", exam="play", count=1, of=questions)
    table = tuple(
        Row(f"method {name}", name, questions, int(share * questions), share, share - 0.1, share + 0.1, 0.04, {})
        for name, share in CANDIDATES.items()
    )
    served = next(run.root.glob("stages/train-round-1-*/vbi-1"))
    files = {"towns": str(database)}
    result = Result(table, decisions, "vbi-1", str(served), files, synthetic=decisions[1:], notes=("SPFT-SQL: ended",))
    run.write("result.json", result.to_json())
    run.event("finished", served="vbi-1")
    run.close()
    return run.root


def _questions(name: str, count: int) -> list[Example]:
    return [
        Example(
            f"{name}-{i:03d}", "towns", f"Which towns have more than {i} people? {HOSTILE if i == 5 else ''}",
            GOLD.format(500 * i), "label", f"t{i % 3}", LEVELS[i % 4], evidence="a hint" if i == 7 else "",
        )
        for i in range(count)
    ]  # fmt: skip


def _play_fold(run: Run, fold: int) -> None:
    """The loop without the labels of a fold: fewer pairs, no baselines, no control, no test."""
    exams = {"selection": _questions("selection", 5), "play": _questions("play", 5), "test": list[Example]()}
    exams["gate"] = _questions(f"label-{fold}", FOLD_LABELS)
    _train(run, "labels", {"sft": "sft", "question-0": "sft"}, fold)
    run.event("synthesized", round=1, **counts_of(Tally(21, 7, Counter(timeout=fold))), fold=fold)
    run.event("phrased", round=1, statements=7, pairs=6, dropped={"no question": 1}, fold=fold)
    _train(run, "round-1", {"vbi-1": "sft"}, fold)
    _answer(run, "round-1", ["sft", "vbi-1"], exams, fold)
    run.event("play", mode="spft-a", iteration=1, main="sft", opponent="vbi-1", opponent_accuracy=0.2, rows=5,
              near_misses=0, left_out={}, fold=fold)  # fmt: skip
    _train(run, "play-1", {"spft-a-1": "spft-a"}, fold)
    _answer(run, "play-1", ["spft-a-1"], exams, fold)
    run.event("stopped", mode="spft-a", iteration=2, why=f"fold {fold} is over", fold=fold)


def _train(run: Run, title: str, models: dict[str, str], fold: int | None = None) -> None:
    def build(folder: Path) -> None:
        for name, mode in models.items():
            rejected = WRONG.format(HOSTILE) if mode.startswith("spft") else None
            rows = [
                TrainRow(f"play-{i:03d}/{mode}/{'near-miss-' * (i >= 30)}{i}", "towns", f"prompt {i}", GOLD.format(i),
                         rejected, i % 2 if rejected else None, "synthetic" if i % 3 else "label", replay=False)
                for i in range(40)
            ]  # fmt: skip
            write_records(folder / f"{name}.parquet", rows, TrainRow)
            (folder / name).mkdir()
            manifest = {"name": name, "base": "stages/base-1/base", "mode": mode, "steps": 50, "loss": 0.5}
            (folder / name / "spftsql.json").write_text(json.dumps(manifest))
            with run.metrics.open("a") as file:
                for step in range(1, 51):
                    values = {
                        "job": f"{name}{_part(fold)}",
                        "mode": mode,
                        "step": step,
                        "steps": 50,
                        "loss": 4 / step,
                        "tokens": 1000,
                    }
                    if rejected:
                        values |= {"margin": step / 10, "preferred": min(1.0, 0.5 + step / 100)}
                    file.write(json.dumps(values) + "\n")

    run.stage(f"train-{title}{_part(fold)}", models, build)


def _part(fold: int | None) -> str:
    return f"-fold-{fold}" if fold else ""


def _answer(
    run: Run, title: str, candidates: list[str], exams: dict[str, list[Example]], fold: int | None = None
) -> None:
    of_fold = {"fold": fold} if fold else {}
    if not fold:
        for name, examples in exams.items():
            write_records(run.root / "exams" / f"{name}.parquet", examples, Example)
    draw = random.Random(0)
    luck = {(exam, example.id): draw.random() for exam, examples in exams.items() for example in examples}
    asked, samples, checks, verdicts = [], [], [], []
    for candidate in candidates:
        for exam, examples in exams.items():
            mix: Counter[str] = Counter()
            for example in examples:
                identity = f"{candidate}/{exam}/{example.id}"
                right = (luck[exam, example.id] + len(candidate) / 17) % 1 < CANDIDATES[candidate]
                status = "equal" if right else ("different", "error", "timeout")[len(example.question) % 3]
                sql = example.sql if right else WRONG.format("Norway")
                asked.append(GenerationRequest(identity, "towns", f"prompt {example.id}", candidate, 1, 0.0, 50, 0))
                samples.append(Sample(identity, "towns", candidate, 0, sql, 20, "stop"))
                checks.append(VerificationRequest(f"{identity}/0", "towns", sql, example.sql, "strict"))
                reason = "" if right else "no such column: x" if status == "error" else "2 rows, gold 3"
                verdicts.append(Verdict(f"{identity}/0", "towns", status, reason, 1.0, 3, False, "d", "sqlite"))
                mix[status] += 1
            run.event("verdicts", candidate=candidate, exam=exam, **mix, **of_fold)

    def generate(folder: Path) -> None:
        write_records(folder / "requests.parquet", asked, GenerationRequest)
        write_records(folder / "samples", samples, Sample)

    def verify(folder: Path) -> None:
        write_records(folder / "requests.parquet", checks, VerificationRequest)
        write_records(folder / "verdicts", verdicts, Verdict)

    run.stage(f"generate-{title}{_part(fold)}", candidates, generate)
    run.stage(f"verify-{title}{_part(fold)}", candidates, verify)
    for candidate in candidates:
        accuracy = CANDIDATES[candidate] / 5 if fold else CANDIDATES[candidate]
        run.event("selection", candidate=candidate, accuracy=accuracy, **of_fold)


def _pair(number: int) -> PairRow:
    kept = number % 4 != 0
    return PairRow(
        id=f"synthetic/1/{number}",
        round=1,
        db_id="towns",
        database="c0ffee",
        template=f"template-{number % 5}",
        bindings="{}",
        seed=number,
        sql=GOLD.format(number),
        sql_status="ran",
        sql_rows=3,
        sql_ms=1.0,
        prompt_builder="p",
        question_model="q",
        question_seed=1,
        voter="v",
        candidates="[]",
        question=f"towns above {number} {HOSTILE if number == 1 else ''}" if kept else None,
        votes=3,
        votes_ms=2.0,
        confidence=0.66 if kept else None,
        part="train" if kept else "",
        kept=kept,
        reason="" if kept else "a value is not said",
    )
