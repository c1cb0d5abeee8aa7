"""Early stopping: models of one training put to questions while it goes on, and the best of them kept.

What decides is execution accuracy over the selection set, never a loss: a loss goes on falling while the model forgets.
Every `training.validate_steps` steps, and at the end, the model is written as it would be at the end of the training,
and `validate(folder)` says how much of the selection set it answers. The training ends when `training.patience` of them
in a row were no better than the best before, and its output is the best (among equals the first). Under Ray Train the
validation is a task of its own while the training goes on to the next one; what it says is on disk, beside the models,
so that nothing is asked twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spftsql.config import Config
from spftsql.databases.places import Databases
from spftsql.errors import Fault
from spftsql.records import GenerationRequest, VerificationRequest
from spftsql.training.artefact import read_manifest, write_manifest
from spftsql.training.card import write_card

Validate = Callable[[Path], float]  # a model directory to its accuracy, 0 to 1; for Ray it can be pickled
_FOLDER = "validation"


class Watch:
    """The models of one training that were put to the questions, and what came out: a folder below its work folder."""

    def __init__(self, work: Path, every: int, patience: int, steps: int) -> None:
        """`steps` is the last step of the training, which is validated whatever `every` says."""
        self._folder = work / _FOLDER
        self._every, self._patience, self._steps = every, patience, steps
        self._told: set[int] = set()

    def due(self, step: int) -> bool:
        """Whether the model of this step is to be validated."""
        return step > 0 and (step % self._every == 0 or step == self._steps)

    def model(self, step: int) -> Path:
        """Where the model of a step is, or is to be, written."""
        return self._folder / f"step-{step:08d}"

    def result(self, step: int) -> float | None:
        """The accuracy of a step's model; None when it was not validated."""
        return _read(_result_file(self.model(step)))

    def results(self) -> dict[int, float]:
        """The accuracy of every validated step, in their order."""
        found = {int(path.stem.removeprefix("step-")): _read(path) for path in sorted(self._folder.glob("step-*.json"))}
        return {step: accuracy for step, accuracy in found.items() if accuracy is not None}

    def news(self) -> dict[int, float]:
        """Results that an earlier call did not give."""
        new = {step: accuracy for step, accuracy in self.results().items() if step not in self._told}
        self._told |= set(new)
        return new

    def best(self) -> int:
        """The step with the best model. Raises `Fault` when no validation came to an end."""
        results = self.results()
        if not results:
            raise Fault(f"no model of {self._folder.parent} could be validated; run again")
        return max(results, key=lambda step: (results[step], -step))

    def ended(self) -> bool:
        """Whether the last `patience` validations were no better than the best before them."""
        results = self.results()
        return bool(results) and len([step for step in results if step > self.best()]) >= self._patience

    def write(self, step: int, save: Callable[[Path], None]) -> Path:
        """Writes the model of a step by `save(folder)`, complete or not at all, unless it is there."""
        target = self.model(step)
        if not target.is_dir():
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            try:
                save(partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(target)
        return target

    def forget_worse(self) -> None:
        """Removes the validated models that are not the best; what they reached stays known."""
        results = self.results()
        for step in results:
            if step != self.best():
                shutil.rmtree(self.model(step), ignore_errors=True)

    def finish(self, output: Path) -> None:
        """Makes the best model the training's output; its manifest and card say what all of them reached."""
        best, results = self.best(), self.results()
        folder = self.model(best)
        manifest = read_manifest(folder)
        validations = [{"step": step, "accuracy": accuracy} for step, accuracy in results.items()]
        write_manifest(folder, **{**manifest, "validations": validations})
        write_card(folder)
        folder.rename(output)
        shutil.rmtree(self._folder.parent, ignore_errors=True)


def judge(model: Path, validate: Validate) -> float:
    """Validates a model directory, once: what came out is kept beside it."""
    file = _result_file(model)
    accuracy = _read(file)
    if accuracy is None:
        accuracy = float(validate(model))
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"accuracy": accuracy}), encoding="utf-8")
        temporary.replace(file)
    return accuracy


def _result_file(model: Path) -> Path:
    return model.with_name(f"{model.name}.json")


def _read(file: Path) -> float | None:
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["accuracy"])
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class ExecutionAccuracy:
    """`Validate` by execution: greedy answers of the model to `questions`, compared with `golds` in the sandbox.

    The `model` of the questions is filled in. `sql_of(id, completion)` takes the SQL out of an answer. Raises `Fault`
    when some answers could not be verified for our reasons: they say nothing about the model.
    """

    questions: Sequence[GenerationRequest]
    golds: Mapping[str, str]  # by the id of the question
    databases: Databases
    config: Config
    sql_of: Callable[[str, str], str]

    def __call__(self, model: Path) -> float:
        """The share of the questions that are answered right."""
        from spftsql.generation.engine import open_engine
        from spftsql.verification.worker import Verifier

        engine = open_engine(self.config)
        try:
            samples = engine.generate([replace(question, model=str(model)) for question in self.questions])
        finally:
            engine.close()
        policy = self.config.verification.policy
        checks = [
            VerificationRequest(
                sample.id, sample.db_id, self.sql_of(sample.id, sample.text), self.golds[sample.id], policy
            )
            for sample in samples
        ]
        with Verifier(self.databases, self.config.sandbox) as verifier:
            verdicts = verifier.verify(checks)
        faults = [verdict.fault for verdict in verdicts if verdict.fault]
        if faults:
            raise Fault(f"{len(faults)} of {len(verdicts)} selection answers could not be verified: {faults[0]}")
        return sum(verdict.status == "equal" for verdict in verdicts) / max(len(verdicts), 1)
