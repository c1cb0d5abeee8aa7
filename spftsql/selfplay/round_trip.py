"""The round trip: a question model's texts as candidate questions, and what the Text-to-SQL model is asked about them.

SPFT-SQL, section 3.1.2. What is asked follows from a text and the round alone, so that it can be asked as soon as the
text is there (`generation.onward`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spftsql.config import Config
from spftsql.generation.onward import examples_of
from spftsql.linking.literals import filter_literals, unsaid
from spftsql.prompts import PromptBuilder
from spftsql.records import Example, GenerationRequest, Sample, Statement
from spftsql.selfplay.lineage import pair_id, question_request, vote_request
from spftsql.selfplay.questions import Phrasing
from spftsql.selfplay.stages import generation_request
from spftsql.synthesis.placeholders import Hidden, hide_values, show_values
from spftsql.synthesis.question_form import is_question
from spftsql.verification.samples import Checks

if TYPE_CHECKING:
    from spftsql.databases.catalogue import Database


@dataclass(frozen=True)
class RoundTrip:
    """The questions of a round and their way back; an `Onward`, which travels to actors.

    `statements` are by the request for their questions, `voter` is the directory of the Text-to-SQL model.
    """

    folder: Path
    config: Config
    prompts: PromptBuilder
    databases: Mapping[str, Database]
    round_: int
    statements: Mapping[str, Statement]
    voter: str

    @property
    def checks(self) -> Checks:
        """See `Onward`."""
        config = self.config
        return Checks(
            self.folder / "checks", examples_of(self.folder), self.databases, config.prompt, config.verification.policy
        )

    @property
    def share(self) -> float:
        """See `Onward`: each candidate is written once and answered `votes` times, in texts about as long."""
        votes = self.config.synthesis.votes
        return votes / (votes + 1)

    def asked(self, samples: Sequence[Sample]) -> list[tuple[GenerationRequest, Example]]:
        """See `Onward`."""
        found = self.phrasings(samples)
        return [one for identity, phrasings in found.items() for one in self.votes(identity, phrasings)]

    def phrasings(self, samples: Sequence[Sample]) -> dict[str, list[Phrasing]]:
        """The candidate questions of statements by the request for them: each text once, in the order of samples."""
        texts: dict[str, dict[str, bool]] = defaultdict(dict)
        for sample in sorted(samples, key=lambda sample: (sample.id, sample.index)):
            text = self.prompts.parse_question(sample.text)
            cut = sample.finish_reason == "length" and "\n" not in sample.text.strip()
            texts[sample.id][text] = texts[sample.id].get(text, False) or not cut
        return {
            identity: [
                replace(one, asks=one.asks and own[text])
                for text, one in self._phrased(self.statements[identity], filter(None, own))
            ]
            for identity, own in texts.items()
        }

    def votes(self, identity: str, phrasings: Sequence[Phrasing]) -> list[tuple[GenerationRequest, Example]]:
        """The requests for the SQL of those candidates that are complete, with what each is about."""
        statement, config = self.statements[identity], self.config.synthesis
        database = self.databases[statement.db_id]
        return [
            (
                generation_request(
                    self.config,
                    vote_request(identity, number),
                    statement.db_id,
                    self.prompts.text_to_sql(database, phrasing.text),
                    self.voter,
                    config.votes,
                    config.vote_temperature,
                ),
                pair_of(self.round_, statement, phrasing),
            )
            for number, phrasing in enumerate(phrasings)
            if phrasing.complete
        ]

    def _phrased(self, statement: Statement, texts: Iterable[str]) -> Iterator[tuple[str, Phrasing]]:
        dialect = self.databases[statement.db_id].schema.dialect
        hidden = hide_values(statement.sql, dialect) if self.config.synthesis.hide_values else None
        values = filter_literals(statement.sql, dialect)
        for text in texts:
            if hidden is not None:
                phrasing = _shown(text, hidden, statement.sql, dialect)
            else:
                phrasing = Phrasing(text, unsaid(text, statement.sql, dialect))
            yield text, replace(phrasing, asks=is_question(phrasing.text, statement.sql, values))


def statements_by_request(round_: int, statements: Iterable[Statement]) -> dict[str, Statement]:
    """The statements by the request for their questions."""
    return {question_request(round_, statement): statement for statement in statements}


def pair_of(round_: int, statement: Statement, phrasing: Phrasing) -> Example:
    """The pair that a statement and a question make."""
    agreement = phrasing.agreement
    return Example(
        id=pair_id(round_, statement),
        db_id=statement.db_id,
        question=phrasing.text,
        sql=statement.sql,
        source="synthetic",
        template=statement.template,
        confidence=1.0 if agreement is None else agreement,
    )


def _shown(text: str, hidden: Hidden, sql: str, dialect: str) -> Phrasing:
    """A question with its values put back; those whose placeholder it lost are missing, and what it does not say."""
    shown = show_values(text, hidden)
    if shown is not None:
        return Phrasing(shown, unsaid(shown, sql, dialect))  # LIMITs have no placeholder
    return Phrasing(text, tuple(value for name, value in hidden.values if name not in text) or ("a placeholder",))
