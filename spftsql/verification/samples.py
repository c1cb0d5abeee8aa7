"""Verification of samples while others are still being written.

Whoever writes samples stores them in parts (`generation.work`). A part's statements can be executed as soon as it is
there: the verdicts are put into a folder of their own, and the verification stage, which asks for the same statements
later, takes them from it. What is missing there it has executed as ever, so nothing depends on this but time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spftsql.config import PromptConfig
from spftsql.databases.places import Source
from spftsql.records import Example, Policy, Sample, Verdict, VerificationRequest, read_records, write_records

if TYPE_CHECKING:
    from spftsql.databases.catalogue import Database
    from spftsql.prompts import PromptBuilder


@dataclass(frozen=True)
class Checks:
    """What it takes to verify the samples of a generation stage wherever they are read; it travels to actors.

    `folder` receives the verdicts; `examples` is a Parquet file of what the requests ask, by their ids, or a folder of
    such files that has those of a part before the part is there.
    """

    folder: Path
    examples: Path
    databases: Mapping[str, Database]
    prompt: PromptConfig
    policy: Policy

    @property
    def sources(self) -> dict[str, Source]:
        """Where the databases are."""
        return {name: database.source for name, database in self.databases.items()}

    def has(self, part: str) -> bool:
        """Whether the part with this name has its verdicts."""
        return (self.folder / "verdicts" / part).exists()

    def store(self, part: str, requests: Sequence[VerificationRequest], verdicts: Iterable[Verdict]) -> None:
        """Keeps the verdicts of a part, but for those that say nothing about the SQL."""
        known = {verdict.id: verdict for verdict in verdicts if verdict.fault is None}
        write_records(self.folder / "requests" / part, [r for r in requests if r.id in known], VerificationRequest)
        write_records(self.folder / "verdicts" / part, [known[r.id] for r in requests if r.id in known], Verdict)


class SampleReader:
    """Turns the parts of samples into statements to be executed."""

    def __init__(self, checks: Checks) -> None:
        """Reads what the requests ask."""
        from spftsql.prompts import PromptBuilder

        self._checks = checks
        self._prompts = PromptBuilder(checks.prompt, None)
        self._examples: dict[str, Example] = {}

    def statements(self, part: Path) -> list[VerificationRequest]:
        """The statements of a part; samples that engines failed with have none."""
        samples = [sample for sample in read_records(part, Sample) if sample.fault is None]
        checks = self._checks
        if any(sample.id not in self._examples for sample in samples):
            self._examples = {example.id: example for example in read_records(checks.examples, Example)}
        return [
            statement(s, self._examples[s.id], self._prompts, checks.databases[s.db_id], checks.policy) for s in samples
        ]


def statement(
    sample: Sample, example: Example, prompts: PromptBuilder, database: Database, policy: Policy
) -> VerificationRequest:
    """The SQL of a sample, to be compared with that of the example that was asked."""
    return VerificationRequest(
        id=f"{sample.id}/{sample.index}",
        db_id=sample.db_id,
        sql=prompts.parse_sql(sample.text, database, example.question),
        gold_sql=example.sql,
        policy=policy,
    )


def early_verdicts(folder: Path) -> dict[VerificationRequest, Verdict]:
    """The verdicts that were had while samples were written, by their statements; none where there is no folder."""
    found: dict[VerificationRequest, Verdict] = {}
    for file in sorted((folder / "verdicts").rglob("*.parquet")):
        requests = read_records(folder / "requests" / file.relative_to(folder / "verdicts"), VerificationRequest)
        verdicts = {verdict.id: verdict for verdict in read_records(file, Verdict)}
        found |= {request: verdicts[request.id] for request in requests if request.id in verdicts}
    return found
