"""`spftsql synthesize`: the first half of a round alone, SQL over the recipe's databases, on request with questions."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spftsql.config import Config
from spftsql.databases.catalogue import open_catalogue
from spftsql.errors import UserError, disk_faults
from spftsql.evaluation.benchmarks import load_benchmark
from spftsql.execution import open_execution
from spftsql.progress import Reporter
from spftsql.runs import Run
from spftsql.selfplay import vbi
from spftsql.selfplay.base import base_model
from spftsql.selfplay.lineage import Made
from spftsql.selfplay.recombined import with_recombined
from spftsql.selfplay.run import announce, first_models, synthesis_databases, template_pool, usable_labels
from spftsql.selfplay.stages import Stages

_SHOWN = 10
_FORMATS = (".jsonl", ".csv", ".parquet")
_COLUMNS = ("id", "db_id", "question", "sql", "template", "bindings", "rows", "confidence")


def run_synthesize(config: Config, count: int, out: Path | None, questions: bool, console: Console) -> None:
    """Makes up to `count` statements (pairs, with `questions`), shows some, and writes them all to `out`.

    Works in the recipe's run directory and uses what is there: a question model that a run has trained is not trained
    again. Raises `UserError` for a file of another kind than JSON lines, CSV or Parquet.
    """
    if out is not None and (out.suffix not in _FORMATS or out.is_dir() or not out.absolute().parent.is_dir()):
        raise UserError(f"--out {out}: name a file in a folder that is there, ending in {', '.join(_FORMATS)}")
    rows = [_row(one, questions) for one in _made(config, count, questions)]
    if out is not None:
        with disk_faults(out):
            _write(out, rows)
    table = Table("database", *(("question",) if questions else ()), "SQL", "rows")
    for row in rows[:_SHOWN]:
        shown = (row["db_id"], *((row["question"],) if questions else ()), row["sql"], str(row["rows"]))
        table.add_row(*(escape("".join(char if char.isprintable() else " " for char in cell)) for cell in shown))
    console.print(table)
    where = f", all in {out}" if out is not None else "; --out FILE keeps them"
    console.print(f"{len(rows)} {'pairs' if questions else 'statements'}{where}", markup=False, soft_wrap=True)
    if len(rows) < count:
        console.print(f"fewer than {count}: why is in {config.run_dir / config.name}/events.jsonl", soft_wrap=True)


def _made(config: Config, count: int, questions: bool) -> list[Made]:
    directory, report = Run(config), Reporter()
    try:
        benchmark = load_benchmark(config.data, config.seed, directory.root)
        catalogue = open_catalogue(benchmark.databases)
        sources = {name: database.source for name, database in catalogue.items()}
        with open_execution(config, sources) as execution:
            stages = Stages(config, directory, execution, catalogue, report)
            labels, gate = usable_labels(stages, {"labels": benchmark.train, "gate": benchmark.gate})
            pool, databases = template_pool(stages, labels), synthesis_databases(stages, labels)
            if not questions:
                made = vbi.statements(stages, 1, count, pool, None, labels, databases)
                return [one for one in made if not one.reason][:count]
            announce(stages, labels, gate, benchmark.test)
            base = base_model(stages, labels)
            stages.use_prompts(base.path)
            voter, question_model = first_models(stages, base, labels)
            filled = partial(vbi.statements, stages, 1, pool=pool, weights=None, known=labels, databases=databases)
            made = with_recombined(stages, 1, count, labels, labels, (), None, filled)
            made = vbi.phrased(stages, 1, made, question_model, voter)
            made = vbi.without_leaks(stages, 1, made, [*gate, *benchmark.test])
            return [one for one in made if one.pair is not None][:count]
    finally:
        directory.close()


def _row(made: Made, questions: bool) -> dict[str, Any]:
    pair = made.pair
    return {
        "id": made.statement.id,
        "db_id": made.statement.db_id,
        "question": pair.question if pair is not None else None,
        "sql": made.statement.sql,
        "template": made.statement.template,
        "bindings": made.statement.bindings,
        "rows": made.verdict.row_count,
        "confidence": made.phrasings[made.chosen].agreement if questions and made.chosen is not None else None,
    }


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    temporary = out.with_name(f".{out.name}.tmp")
    if out.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {"rows": pa.int64(), "confidence": pa.float64()}
        schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _COLUMNS])
        pq.write_table(pa.Table.from_pylist(list(rows), schema), temporary)
    else:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if out.suffix == ".csv":
                writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.replace(out)
