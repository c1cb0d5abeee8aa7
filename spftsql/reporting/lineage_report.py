"""Where the candidates of a run come from, and the card of the model that it serves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from spftsql.config import Config, DataConfig
from spftsql.reporting.damage import read_or_note
from spftsql.reporting.run_record import RunRecord, right_and_known
from spftsql.reporting.status import accuracy_text, count
from spftsql.selfplay.candidates import NEAR_MISS


def lineage_rows(record: RunRecord, damaged: list[str] | None = None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Every trained model: from which it started, in which mode, on which rows.

    `damaged` gets a line about rows that cannot be read; without it that raises `UserError`.
    """
    rows: list[tuple[str, ...]] = []
    for stage in record.stages:
        folder = stage.folder(record.root)
        if stage.kind != "train" or stage.state != "built":
            continue
        for data in sorted(folder.glob("*.parquet")):
            manifest = _manifest(folder / data.stem)
            if manifest:
                rows.append(
                    (
                        data.stem if stage.fold is None else f"fold {stage.fold}: {data.stem}",
                        Path(str(manifest.get("base", ""))).name,
                        str(manifest.get("mode", "")),
                        read_or_note(record.root, data, _sources, damaged) or "",
                        str(manifest.get("steps", "")),
                        f"{manifest['loss']:.4f}" if isinstance(manifest.get("loss"), float) else "",
                        f"{stage.name}-{stage.key}",
                    )
                )
    return ("model", "started from", "mode", "trained on", "steps", "last loss", "stage"), rows


def made_from(record: RunRecord) -> list[tuple[str, str]]:
    """What the run as a whole was made from."""
    config = record.config
    if config is None:
        return []
    base = config.model.path or "a model from scratch, built by the run"
    said = [
        ("base model", base),
        ("benchmark", _benchmark(config.data)),
        ("seed", str(config.seed)),
        (
            "versions",
            ", ".join(sorted({str(e["version"]) for e in record.of("opened") if "version" in e})) or "not said",
        ),
        ("attempts", str(record.attempts)),
    ]
    return said


def model_card(record: RunRecord) -> list[tuple[str, str]]:
    """What somebody who gets the served model should know of it."""
    result, config = record.result, record.config
    if result is None:
        return []
    mixes = record.mixes.get(result.served, {})
    measured = "; ".join(
        f"{exam} {accuracy_text(mix)}, n {known}"
        for exam, mix in mixes.items()
        if exam != "play" and (known := right_and_known(mix)[1])
    )
    card = [
        ("model", result.served),
        ("directory", result.served_path),
        ("task", "writes one SELECT statement for a question about a database whose schema it is given"),
        ("databases", ", ".join(sorted(result.databases))),
        ("measured", measured or "not measured"),
        ("decided by", "; ".join(d.sentence() for d in result.decisions) or "no gate: the best on the selection set"),
    ]
    if config is not None:
        card[2:2] = [
            ("base model", config.model.path or "from scratch, on this run's own text"),
            ("training", f"{_training(config)}; the served model need not have gone through all of them"),
        ]
    card += [
        (
            "not for",
            "statements that write; databases of another kind than those above, on which nothing was measured; answers "
            "that nobody checks",
        ),
        ("licence", "that of the base model and of the data that it was trained on; this run adds none"),
    ]
    return card


def _benchmark(data: DataConfig) -> str:
    if data.benchmark == "none":
        return "none: databases without labels" if data.feedback is None else "none: labels from feedback"
    return f"{data.benchmark}, {f'{data.label_share:.0%}' if data.label_share else 'none'} of its training labels"


def _training(config: Config) -> str:
    """The steps of the loop that the configuration asks for, in their order."""
    data, play = config.data, config.selfplay
    labelled = (data.benchmark != "none" and data.label_share > 0) or data.feedback is not None
    steps = ["labels"] if labelled else []
    if rounds := config.vbi.rounds:
        steps.append(f"{rounds} round{'s' if rounds > 1 else ''} of verified synthetic pairs")
    if turns := play.iterations:
        steps.append(f"up to {turns} iteration{'s' if turns > 1 else ''} of self-play ({play.mode})")
    return ", then ".join(steps)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        tree = json.loads((folder / "spftsql.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _sources(data: Path) -> str:
    import pyarrow.parquet as pq

    table = pq.read_table(data, columns=["id", "source", "replay", "rejected"])
    kinds = Counter(
        "replayed labels" if replay else f"{source} with a near miss" if rejected and NEAR_MISS in identity else source
        for identity, source, replay, rejected in zip(*(column.to_pylist() for column in table.columns), strict=True)
    )
    return ", ".join(f"{count(n)} {kind}" for kind, n in sorted(kinds.items()))
