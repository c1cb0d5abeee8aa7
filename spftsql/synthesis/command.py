"""`spftsql templates extract|show`: the structures of a benchmark's labels as a file, and what such a file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.errors import UserError
from spftsql.evaluation.locations import database_configs
from spftsql.evaluation.sources import read_split
from spftsql.records import Example
from spftsql.sandbox.location import locate
from spftsql.synthesis.hardness import LEVELS
from spftsql.synthesis.library import library, read_templates, write_templates
from spftsql.synthesis.templates import Template, extract_pool

BUILT_IN = "library"
_REASONS = 5


def extract_templates(benchmark: str, root: Path, split: str | None, out: Path, console: Console) -> None:
    """Writes the templates of a benchmark's SQL (default: of its training split) to `out`, most frequent first.

    Raises `UserError` for missing files, and where no statement gives a template.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"{out} cannot be written: name a file in a folder that is there")
    questions = read_split(benchmark, root, split or "train")
    databases = database_configs(benchmark, root, questions.split)
    schemas: dict[str, Schema] = {}
    for name in dict.fromkeys(row.db_id for row in questions.rows):
        if name in databases:
            schemas[name] = reflect(name, locate(databases[name].url), databases[name].foreign_keys)
    if not schemas:
        raise UserError(f"{benchmark}: no database file for any question in {root}; run `spftsql data check`")
    examples = [
        Example(str(index), row.db_id, row.question, row.sql, "label", "") for index, row in enumerate(questions.rows)
    ]
    templates, problems = extract_pool(examples, schemas)
    if not templates:
        raise UserError(f"{benchmark} {questions.split}: no statement gives a template ({problems[0].reason})")
    try:
        out.write_text(write_templates(templates, schemas), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    levels = Counter(template.hardness for template in templates)
    console.print(
        f"{len(templates)} templates of {len(examples) - len(problems)} of {len(examples)} statements "
        f"({', '.join(f'{levels[level]} {level}' for level in LEVELS if levels[level])}) are in {out}",
        markup=False,
        soft_wrap=True,
    )
    reasons = Counter(problem.reason for problem in problems)
    for reason, count in reasons.most_common(_REASONS):
        console.print(f"  {count} without: {reason}", markup=False, soft_wrap=True)


def show_templates(source: str, hardness: str | None, limit: int, console: Console) -> None:
    """Prints a table of the templates of a file, or of the built-in library. Raises `UserError`."""
    if hardness is not None and hardness not in LEVELS:
        raise UserError(f"unknown hardness {hardness}; use {', '.join(LEVELS)}")
    path = Path(source)
    if source != BUILT_IN and not path.is_file():
        raise UserError(f"no file {source}; name a file of templates, or `{BUILT_IN}`")
    templates = library() if source == BUILT_IN else read_templates(path)
    chosen = [template for template in templates if hardness is None or template.hardness == hardness]
    chosen.sort(key=lambda template: -template.count)
    console.print(_table(chosen[:limit], sum(template.count for template in templates)))
    console.print(f"{min(limit, len(chosen))} of {len(chosen)} templates", markup=False)


def _table(templates: Sequence[Template], total: int) -> Table:
    table = Table("share", "hardness", "tables", "template")
    for template in templates:
        tables = sorted({sum(len(scope.tables) for scope in shape.scopes[:1]) for shape in template.bindings})
        shown = ", ".join(map(str, tables))
        table.add_row(f"{template.count / total:.2%}", template.hardness, shown, _escaped(template.sql))
    return table


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
