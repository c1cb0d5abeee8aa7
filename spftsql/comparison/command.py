"""`spftsql compare`: the table of several methods, printed, and kept beside their runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from spftsql.comparison.measuring import Measured, Method, folder_of, measure
from spftsql.comparison.table import HEADER, cells, markdown, method_rows, notes_of, tree
from spftsql.config import Config
from spftsql.errors import UserError, disk_faults
from spftsql.evaluation.command import check_outputs, write_text
from spftsql.progress import Reporter
from spftsql.selfplay.retention import forget_weights
from spftsql.selfplay.table import read_outcomes


def run_compare(
    config: Config, methods: Sequence[Method], seeds: int, out: Path | None, report: Reporter, console: Console
) -> None:
    """Measures the methods under `seeds` seeds, from that of the recipe on, and prints the table.

    After every run the table so far is in `compare.json` and `table.md` of the comparison's folder. Raises `UserError`.
    """
    if seeds < 1:
        raise UserError("--seeds must be 1 or more")
    if out is not None:
        check_outputs((("--json", out),))
    wanted = range(config.seed, config.seed + seeds)
    folder, measured, exam = folder_of(config), list[Measured](), "test"
    title = f"{config.name}: execution accuracy"
    for one in measure(config, methods, wanted, report):
        measured.append(one)
        root = folder / f"seed-{one.seed}"
        exam = read_outcomes(root / one.method).exam
        text = json.dumps(tree(measured, exam), indent=1, ensure_ascii=False)
        with disk_faults(folder):
            write_text(folder / "compare.json", text)
            write_text(folder / "table.md", markdown(measured, exam, title))
        if config.retention == "needed" and one.method == methods[-1]:
            forget_weights(root / "stages", [other.served_path for other in measured if other.seed == one.seed])
    if out is not None:
        write_text(out, text)
    table = Table(
        *HEADER, title=f"{title} on the {exam} questions", title_justify="left", box=box.SIMPLE, pad_edge=False
    )
    for row in method_rows(measured):
        table.add_row(*cells(row, separator="\n"))
    console.print(table)
    for note in notes_of(measured, exam):
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"The runs, compare.json and table.md are in {folder}.", markup=False, soft_wrap=True)
