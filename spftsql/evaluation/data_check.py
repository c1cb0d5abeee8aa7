"""Says what of a benchmark is there and what is missing (`spftsql data check DIR --benchmark B`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from spftsql.config import DatabaseConfig
from spftsql.databases.files import database_location
from spftsql.errors import UserError
from spftsql.evaluation.locations import database_configs
from spftsql.evaluation.sources import PUBLISHED, Part, Questions, existing_splits, read_questions, read_split

State = Literal["ok", "partial", "missing", "absent"]
_NAMES = 8  # missing databases that are named one by one
_USE: dict[Part, str] = {
    "train": "without it nothing can be trained; `spftsql score` does not need it",
    "gate": "not needed: data.gate_share of the training labels is held out instead",
    "test": "without it nothing can be scored",
}


@dataclass(frozen=True)
class Finding:
    """One thing a benchmark consists of: how much of it is there, and what to do about the rest.

    `absent` is a thing that is not there and not needed; `advice` is empty where nothing is to be done.
    """

    item: str
    state: State
    detail: str
    advice: str = ""


def check_data(root: Path, benchmark: str, given: Mapping[str, DatabaseConfig] | None = None) -> list[Finding]:
    """The findings about each part of the questions, and about the databases that they need.

    `given` are databases by name that lie elsewhere, such as those of a recipe. Raises `UserError` for an unknown
    benchmark, or when `root` is not a directory.
    """
    if benchmark not in PUBLISHED:
        raise UserError(f"unknown benchmark {benchmark}; known: {', '.join(PUBLISHED)}")
    if not root.is_dir():
        raise UserError(f"{root} is not a directory")
    findings, needed = [], dict[str, int]()
    for part in ("train", "gate", "test"):
        finding, questions = _part(lambda part=part: read_questions(benchmark, root, part), part)  # type: ignore[misc]
        findings.append(finding)
        for question in questions.rows if questions else ():
            needed[question.db_id] = needed.get(question.db_id, 0) + 1
    more = [_split(benchmark, root, split) for split in _further_splits(benchmark, root)]
    if more and findings[-1].state == "missing":  # there is something else to score
        findings[-1] = replace(findings[-1], state="absent", advice="")
    if more and not needed:
        return [*findings, *more]
    return [*findings, *more, _databases(benchmark, root, needed, given or {})]


def render_findings(findings: list[Finding]) -> str:
    """The findings as lines for a person."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8} {finding.item}: {finding.detail}")
        lines += [f"         -> {finding.advice}"] if finding.advice else []
    return "\n".join(lines)


def _part(read: Callable[[], Questions], part: Part) -> tuple[Finding, Questions | None]:
    item = f"{part} questions"
    try:
        questions = read()
    except UserError as error:
        return Finding(item, "missing", str(error), _USE[part]), None
    if not questions.rows:
        state: State = "absent" if part == "gate" else "missing"
        return Finding(item, state, "none", _USE[part]), None
    files = ", ".join(file.name for file in questions.files)
    databases = len({question.db_id for question in questions.rows})
    return Finding(item, "ok", f"{len(questions.rows)} over {databases} databases ({files})"), questions


def _further_splits(benchmark: str, root: Path) -> list[str]:
    """Splits that are there and that no part of a run uses: they can be scored with `--split`."""
    if benchmark == "geoquery":
        return []  # all of them are in the one file that the parts come from
    used = ("train", "gate", "test") if benchmark == "jsonl" else ("train", "dev")
    return [split for split in existing_splits(benchmark, root) if split not in used]


def _split(benchmark: str, root: Path, split: str) -> Finding:
    item = f"split {split}"
    try:
        questions = read_split(benchmark, root, split)
        found = database_configs(benchmark, root, split)
    except UserError as error:
        return Finding(item, "partial", str(error), "mend the file, or take it away")
    files = ", ".join(file.name for file in questions.files)
    needed = {question.db_id for question in questions.rows}
    detail = f"{len(questions.rows)} over {len(needed)} databases ({files})"
    absent = sorted(needed - set(found))
    if not absent:
        return Finding(item, "ok", detail)
    return Finding(item, "partial", f"{detail}, {len(absent)} of them missing", f"missing: {_named(absent)}")


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _databases(benchmark: str, root: Path, needed: dict[str, int], given: Mapping[str, DatabaseConfig]) -> Finding:
    try:
        found = {**database_configs(benchmark, root), **given}
    except UserError as error:
        return Finding("databases", "missing", str(error), "put the file there")
    complaints = {name: _complaint(found[name].url) for name in sorted(needed) if name in found}
    wrong = {name: complaint for name, complaint in complaints.items() if complaint}
    absent = sorted(set(needed) - set(found))
    usable = len(needed) - len(absent) - len(wrong)
    detail = f"{usable} of the {len(needed)} that the questions need"
    if not absent and not wrong:
        return Finding("databases", "ok" if needed else "missing", detail)
    lost = sum(needed[name] for name in [*absent, *wrong])
    detail += f"; {lost} of {sum(needed.values())} questions cannot be used"
    advice = []
    if absent:
        advice.append(f"missing: {_named(absent)}; each belongs at {_place(benchmark)}")
    advice += [f"{found[name].url}: {reason}" for name, reason in wrong.items()]
    return Finding("databases", "partial" if usable else "missing", detail, "; ".join(advice))


def _place(benchmark: str) -> str:
    folder = "dev_databases (or train_databases)" if benchmark == "bird" else "database"
    return f"{folder}/NAME/NAME.sqlite"


def _complaint(url: str) -> str:
    """Why a database file cannot be used; empty when it can, and for what is not a SQLite file."""
    try:
        location = database_location(url)
        if location.engine != "sqlite":
            return ""
        address = f"{Path(location.address).resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            row = connection.execute("SELECT count(*) FROM sqlite_master WHERE type IN ('table', 'view')").fetchone()
    except (UserError, sqlite3.DatabaseError) as error:
        return str(error)
    return "" if row[0] else "has no tables and no views"
