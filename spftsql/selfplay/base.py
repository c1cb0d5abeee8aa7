"""The base model of a run: the one that the configuration names, or one built from scratch on the run's own text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from spftsql.databases.values import Values
from spftsql.linking.placeholders import linked_values
from spftsql.linking.value_index import open_index
from spftsql.records import Example, content_hash
from spftsql.selfplay.candidates import Candidate
from spftsql.selfplay.stages import Stages
from spftsql.synthesis.canonical import spaced
from spftsql.synthesis.placeholders import hide_in_question, hide_values


def base_model(stages: Stages, labels: Sequence[Example]) -> Candidate:
    """The base candidate. A scratch model's tokenizer is trained here, once, and travels with every checkpoint."""
    model = stages.config.model
    if model.path is not None:
        return Candidate("base", model.path, content_hash(model.path))
    scratch = model.scratch
    assert scratch is not None  # config: exactly one of the two is set

    def build(folder: Path) -> None:
        from spftsql.training.scratch import build_scratch_model

        with stages.report.task("base model from scratch"):
            texts = list(_texts(stages, labels))  # read here: the trainer iterates in a thread of its own
            build_scratch_model(scratch, model.max_length, texts, folder / "base", stages.config.seed)

    contents = {name: database.content for name, database in stages.catalogue.items()}
    placeholders = stages.config.prompt.placeholders
    inputs = [
        scratch.model_dump(),
        model.max_length,
        stages.config.seed,
        contents,
        [e.id for e in labels],
        placeholders,
    ]
    stage = stages.run.stage("base", inputs, build)
    return Candidate("base", str(stage.path / "base"), stage.key)


def _texts(stages: Stages, labels: Sequence[Example]) -> Iterator[str]:
    for example in labels:
        hidden = hide_values(example.sql, stages.catalogue[example.db_id].schema.dialect, example.question)
        yield example.question
        yield hide_in_question(example.question, hidden)
        yield spaced(example.sql)
        yield spaced(hidden.sql)
        if stages.config.prompt.placeholders:
            database = stages.catalogue[example.db_id]
            with closing(open_index(database.content, database.schema, database.location)) as index:
                linked = linked_values(example.question, database.schema, index)
            yield linked.question
            yield spaced(linked.hide(example.sql))
    for database in stages.catalogue.values():
        values = Values(database.location)
        for table in database.schema.tables:
            for column in table.columns:
                yield f"{table.name} {column.name}"
                for value, _ in values.column(table.name, column.name):
                    if isinstance(value, str):
                        yield value
