"""The model card: the README.md that travels with a model and says what it was made from, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spftsql.training.artefact import named_base, read_manifest

_MODES = {
    "sft": "supervised fine-tuning on pairs of question and SQL",
    "spin": "self-play fine-tuning (SPIN)",
    "dpo": "direct preference optimization",
    "spft-a": "error-driven self-play (SPFT-SQL; right answers of the opponent lose their penalty)",
    "spft-b": "error-driven self-play (SPFT-SQL; right answers of the opponent are left out)",
}


@dataclass(frozen=True)
class Accuracy:
    """Execution accuracy on questions that nothing was chosen by, with its 95 % interval and the verdicts behind it."""

    about: str
    correct: int
    n: int
    low: float
    high: float
    verdicts: Mapping[str, int]


def write_card(folder: Path, accuracy: Accuracy | None = None) -> None:
    """Writes `README.md` from what `spftsql.json` says; `accuracy` where it is known."""
    manifest = read_manifest(folder)
    base = named_base(folder) or str(manifest.get("base", ""))
    # A directory of one machine says nothing to others, and the Hub takes no such name.
    local = not base or Path(base).is_absolute() or Path(base).exists()
    head = {
        **({} if local else {"base_model": base}),
        "library_name": "peft" if named_base(folder) else "transformers",
        "pipeline_tag": "text-generation",
        "tags": "[text-to-sql, spftsql]",
    }
    lines = ["---", *(f"{name}: {value}" for name, value in head.items()), "---", ""]
    lines += [f"# {manifest.get('name', folder.name)}", "", *_made(manifest, base, local), ""]
    lines += ["## Data", "", *_data(manifest), ""]
    lines += ["## Execution accuracy", "", *_accuracy(manifest, accuracy), ""]
    lines += [
        "## Use",
        "",
        "The prompt must be the one of the training: `spftsql serve` builds it from the database and the question, and"
        " checks every answer by executing it." + _hash(manifest),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _made(manifest: Mapping[str, Any], base: str, local: bool) -> list[str]:
    training = manifest.get("training", {})
    lora = training.get("training.lora")
    kind = f"LoRA of rank {lora['rank']}" if lora else "all weights"
    lines = [
        f"A Text-to-SQL model. Last training: {_MODES.get(str(manifest.get('mode')), manifest.get('mode'))}, {kind}, "
        f"{manifest.get('steps')} steps of {training.get('optimization.batch_size')} rows at a learning rate of "
        f"{training.get('optimization.learning_rate')}, from "
        + (f"the local model {Path(base).name}." if local else f"{base}.")
    ]
    return lines + [
        f"{name}: {value}" for name, value in _details(manifest).items() if name in ("round", "iteration", "opponent")
    ]


def _data(manifest: Mapping[str, Any]) -> list[str]:
    lines = [f"- {source}: {count} rows" for source, count in manifest.get("rows", {}).items()]
    if manifest.get("dropped_rows"):
        lines.append(f"- left out because they are longer than the model takes: {manifest['dropped_rows']}")
    verdicts = _details(manifest).get("verdicts")
    if verdicts:
        lines.append("- verdicts on the model's own answers: " + _counts(verdicts))
    return lines


def _accuracy(manifest: Mapping[str, Any], accuracy: Accuracy | None) -> list[str]:
    lines = []
    if accuracy is not None:
        share = accuracy.correct / max(accuracy.n, 1)
        lines.append(
            f"{accuracy.about}: {share:.3f} ({accuracy.correct} of {accuracy.n}; 95 % interval {accuracy.low:.3f} to "
            f"{accuracy.high:.3f}). Verdicts: {_counts(accuracy.verdicts)}."
        )
    validations = manifest.get("validations")
    if validations:
        best = max(entry["accuracy"] for entry in validations)
        lines.append(
            f"On the selection questions, by which the step was chosen: {best:.3f} at best of {len(validations)} looks."
        )
    return lines or ["Not measured yet."]


def _hash(manifest: Mapping[str, Any]) -> str:
    prompt = _details(manifest).get("prompt_hash")
    return f" Hash of the prompt: `{prompt}`." if prompt else ""


def _details(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    details: Mapping[str, Any] = manifest.get("details", {})
    return details


def _counts(verdicts: Mapping[str, int]) -> str:
    return ", ".join(f"{status} {count}" for status, count in sorted(verdicts.items()))
