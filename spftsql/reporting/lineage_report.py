"""Where the candidates of a run come from, and the card of the model that it serves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from spftsql.reporting.run_record import RunRecord, right_and_known
from spftsql.reporting.status import accuracy_text, count
from spftsql.selfplay.candidates import NEAR_MISS


def lineage_rows(record: RunRecord) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Every trained model: from which it started, in which mode, on which rows."""
    rows: list[tuple[str, ...]] = []
    for stage in record.stages:
        folder = record.root / "stages" / f"{stage.name}-{stage.key}"
        if stage.kind != "train" or stage.state != "built":
            continue
        for data in sorted(folder.glob("*.parquet")):
            manifest = _manifest(folder / data.stem)
            if manifest:
                rows.append(
                    (
                        data.stem,
                        Path(str(manifest.get("base", ""))).name,
                        str(manifest.get("mode", "")),
                        _sources(data),
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
        ("benchmark", f"{config.data.benchmark}, {config.data.label_share:.0%} of its training labels"),
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
        f"{exam} {accuracy_text(mix)}, n {right_and_known(mix)[1]}" for exam, mix in mixes.items() if exam != "play"
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
        play = config.selfplay
        card[2:2] = [
            ("base model", config.model.path or "from scratch, on this run's own text"),
            (
                "training",
                f"labels, then {config.vbi.rounds} rounds of verified synthetic pairs, then up to {play.iterations} "
                f"iterations of self-play ({play.mode}); the served model need not have gone through all of them",
            ),
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
