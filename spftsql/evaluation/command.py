"""`spftsql score`: scores, says what was found, and writes it down."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from spftsql.errors import Fault, UserError
from spftsql.evaluation.score_report import markdown, show
from spftsql.evaluation.score_result import ScoreResult
from spftsql.evaluation.scoring import ScoreOptions, score
from spftsql.progress import Reporter

_NAMED = 3


def run_score(
    options: ScoreOptions,
    console: Console,
    json_file: Path | None = None,
    markdown_file: Path | None = None,
    html_file: Path | None = None,
) -> ScoreResult:
    """Scores, prints the result on `console` and writes the files that are wanted.

    Raises `UserError` before anything is executed when a file could not be written, and `Fault` when a question could
    not be verified for our reasons: then the verdicts on the others are in `JSON_FILE.partial`.
    """
    check_outputs((("--json", json_file), ("--markdown", markdown_file), ("--html", html_file)))
    result = score(replace(options, samples=html_file is not None), Reporter().task)
    if result.faults:
        raise _incomplete(result, json_file)
    show(result, console)
    if json_file is not None:
        write_text(json_file, result.to_json())
        Path(f"{json_file}.partial").unlink(missing_ok=True)
    if markdown_file is not None:
        write_text(markdown_file, markdown(result))
    if html_file is not None:
        from spftsql.evaluation.score_page import page

        write_text(html_file, page(result))
    return result


def check_outputs(files: Iterable[tuple[str, Path | None]]) -> None:
    """Raises `UserError` for the first (option, file) that could not be written."""
    for option, path in files:
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"{option} {path}: the folder {path.absolute().parent} does not exist")
        if path is not None and path.is_dir():
            raise UserError(f"{option} {path} is a folder; name a file")


def _incomplete(result: ScoreResult, json_file: Path | None) -> Fault:
    named = "; ".join(f"question {index}: {fault}" for index, fault in result.faults[:_NAMED])
    more = len(result.faults) - _NAMED
    count = len(result.faults)
    text = f"{count} question{'s' if count > 1 else ''} could not be verified ({named}" + (
        f"; {more} more)" if more > 0 else ")"
    )
    if json_file is not None:
        partial = Path(f"{json_file}.partial")
        with suppress(OSError):
            partial.write_text(result.to_json(), encoding="utf-8", errors="backslashreplace")
            text += f"; the verdicts on the other {len(result.items)} are in {partial}"
    return Fault(f"{text}; run again")


def write_text(path: Path, text: str) -> None:
    """Writes a result file. Raises `UserError` when it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
