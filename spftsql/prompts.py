"""The only place where a prompt is built.

Generation, training, evaluation and serving all call `PromptBuilder`, so that a model is never asked in other words
than it was taught in. Its `hash` covers the wording, the settings and the chat template, and goes into every artefact.
The schema comes first and the question last, so that questions about one database share a prefix. Where the schema is
too large for the prompt, linking keeps the part that the question is about; values that the question mentions are said
beside it, whatever the size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from spftsql.config import PromptConfig
from spftsql.databases.schema_text import fitting_schema_text, sql_name
from spftsql.errors import UserError
from spftsql.linking.column_words import column_words
from spftsql.linking.linker import Linker, fingerprint
from spftsql.linking.literals import filter_literals
from spftsql.linking.placeholders import HiddenValues, linked_values
from spftsql.linking.value_index import ValueIndex, open_index
from spftsql.linking.value_matching import ValueMatch
from spftsql.records import content_hash
from spftsql.synthesis.canonical import spaced, unspaced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spftsql.databases.catalogue import Database

_SQL_TASK = "Write one {dialect} SELECT statement that answers the question below. Answer with the SQL alone."
_QUESTION_TASK = (
    "Write the question, as a person who does not know the database would ask it, that the {dialect} statement below "
    "answers. Say every condition and value; use no names of tables or columns that are not words. Answer with the "
    "question alone, in one line."
)
_REPAIR_TASK = (
    "This statement was tried:\n{sql}\nThe database said: {message}\nWrite the statement again, without this error."
)
_LETTERS_PER_TOKEN = 3.2  # of schema text, in the vocabularies of today's code models
_LINKERS = 64  # databases whose words and values are kept at hand
_FENCE = re.compile(r"```(?:sql)?\s*(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_QUESTION_LABEL = re.compile(r"(?:the\s+)?(?:natural language\s+)?question(?:\s+is)?\s*:\s*", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "«": "»"}


class PromptBuilder:
    """Prompts for one tokenizer. `text_to_sql` and `sql_to_text` return the whole string that the model continues.

    Without a model (an endpoint that puts its own chat template around) there are messages only, and tokens are
    estimated.
    """

    def __init__(self, config: PromptConfig, model: str | Path | None, chat_template: Path | None = None) -> None:
        """Loads the tokenizer of `model`. Raises `UserError` when it has no chat template and none is given."""
        self._config = config
        self._tokenizer = None if model is None else _load_tokenizer(str(model), chat_template)
        self._schema_texts: dict[tuple[str, str], str] = {}
        self._linkers: dict[tuple[str, str], Linker] = {}
        self._indexes: dict[tuple[str, str], ValueIndex] = {}
        self._links = config.linking and config.schema_text != "none"
        self.hash = content_hash(
            _SQL_TASK,
            _QUESTION_TASK,
            _REPAIR_TASK,
            config.model_dump(mode="json"),
            None if self._tokenizer is None else str(self._tokenizer.chat_template),
            fingerprint() if self._links or config.placeholders else None,
        )

    def __getstate__(self) -> dict[str, object]:
        """A copy in another process opens what it needs of the databases itself."""
        return {**self.__dict__, "_linkers": {}, "_indexes": {}}

    def prepare(self, databases: Iterable[Database]) -> None:
        """Builds what prompts need of the databases and is not in the cache yet, so that no question waits for it."""
        if self._links or self._config.placeholders:
            for database in databases:
                open_index(database.content, database.schema, database.location).close()

    def text_to_sql(self, database: Database, question: str, evidence: str = "") -> str:
        """The prompt that asks for SQL; `evidence` is a hint that comes with the question (BIRD)."""
        return self._render(self.text_to_sql_message(database, question, evidence))

    def text_to_sql_message(self, database: Database, question: str, evidence: str = "") -> str:
        """What `text_to_sql` asks, as the text of a person's message, without the model's chat template."""
        if self._config.placeholders:
            question = self._hidden(database, question).question
        if self._config.schema_text == "none":
            return question
        dialect = database.schema.dialect
        schema, values = self._schema_and_values(database, f"{question}\n{evidence}" if evidence else question)
        matches = f"Values: {'; '.join(_condition(value, dialect) for value in values)}\n" if values else ""
        hint = f"Hint: {evidence}\n" if evidence else ""
        return f"{schema}\n\n{_SQL_TASK.format(dialect=dialect)}\n{matches}{hint}Question: {question}"

    def repair(self, database: Database, question: str, sql: str, message: str, evidence: str = "") -> str:
        """The prompt that asks for the SQL once more after `sql` failed with the database's `message`.

        It begins as that of `text_to_sql` does. Raises `ValueError` for a model that is asked with the question alone.
        """
        if self._config.schema_text == "none":
            raise ValueError("a prompt without a schema has no place for an error")
        task = _REPAIR_TASK.format(sql=self.answer(sql, database, question), message=" ".join(message.split()))
        return self._render(f"{self.text_to_sql_message(database, question, evidence)}\n{task}")

    def sql_to_text(
        self, database: Database, sql: str, values: Sequence[str] = (), most_tokens: int | None = None
    ) -> str:
        """The prompt that asks for the question behind `sql`, which shall say `values`.

        The examples of the configuration come first, behind the schema, so that all that statements about one database
        have in common is their beginning; where the prompt would come to more than `most_tokens` with them, they are
        left out. What cryptic columns hold is said in words: their names written out, and their descriptions.
        """
        if self._config.schema_text == "none":
            return self._render(self._styled(sql))
        task = _QUESTION_TASK.format(dialect=database.schema.dialect)
        beginning = f"{self._schema_and_values(database, sql)[0]}\n\n{task}\n"
        words = column_words(sql, database.schema)
        names = "\n".join(["What names stand for:", *words, ""]) if words else ""
        contents = [self._statement(example.sql, _values(example.sql)) for example in self._config.question_examples]
        contents.append(names + self._statement(sql, values))
        contents[0] = beginning + contents[0]
        turns = [{"role": "user", "content": content} for content in contents]
        for place, example in enumerate(self._config.question_examples):
            turns.insert(2 * place + 1, {"role": "assistant", "content": example.question})
        prompt = self.render_messages(turns)
        if len(turns) > 1 and most_tokens is not None and self._count_tokens(prompt) > most_tokens:
            return self._render(beginning + names + self._statement(sql, values))
        return prompt

    def _statement(self, sql: str, values: Sequence[str]) -> str:
        """What a prompt for a question says of one statement."""
        said = f"The question says: {'; '.join(values)}\n" if values else ""
        return f"{said}SQL: {self._styled(sql)}"

    def answer(self, sql: str, database: Database | None = None, question: str = "") -> str:
        """SQL in the form in which the model writes it: the target of training.

        With `prompt.placeholders` the values of `question` are hidden, for which it and its database are needed.
        """
        if self._config.placeholders and database is not None:
            sql = self._hidden(database, question).hide(sql)
        return self._styled(sql)

    def parse_sql(self, text: str, database: Database | None = None, question: str = "") -> str:
        """The SQL in a model's answer: out of a code fence where there is one, without the closing semicolon.

        With `prompt.placeholders` the values of `question` are put back.
        """
        if self._config.sql_style == "spaced":
            text = unspaced(text)
        fence = _FENCE.search(text)
        sql = (fence.group(1) if fence else text).strip().rstrip(";").rstrip()
        if self._config.placeholders and database is not None:
            sql = self._hidden(database, question).show(sql)
        return sql

    def parse_question(self, text: str) -> str:
        """The question in a model's answer: its first line, without a label or quotes around it."""
        lines = [line.strip() for line in text.strip().strip("`").splitlines() if line.strip()]
        line = _QUESTION_LABEL.sub("", lines[0], count=1).strip() if lines else ""
        if not line and len(lines) > 1:
            line = lines[1]
        if len(line) > 1 and _QUOTES.get(line[0]) == line[-1]:
            line = line[1:-1].strip()
        return line

    def _styled(self, sql: str) -> str:
        return spaced(sql) if self._config.sql_style == "spaced" else sql

    def _hidden(self, database: Database, question: str) -> HiddenValues:
        """What of a question is hidden behind placeholders."""
        key = database.name, database.content
        if key not in self._indexes:
            if len(self._indexes) >= _LINKERS:
                self._indexes.pop(next(iter(self._indexes))).close()
            self._indexes[key] = open_index(database.content, database.schema, database.location)
        return linked_values(question, database.schema, self._indexes[key])

    def _schema_and_values(self, database: Database, text: str) -> tuple[str, tuple[ValueMatch, ...]]:
        """The schema as the model reads it with `text`, and the values that `text` mentions; none without linking."""
        key = database.name, database.content
        if not self._links:
            if key not in self._schema_texts:
                budget = self._config.max_schema_tokens
                self._schema_texts[key] = fitting_schema_text(database.schema, budget, self._count_tokens)
            return self._schema_texts[key], ()
        linker = self._linkers.pop(key, None)
        if linker is None:
            index = open_index(database.content, database.schema, database.location)
            linker = Linker(database.schema, index, self._count_tokens, self._config.max_schema_tokens)
            if len(self._linkers) >= _LINKERS:
                self._linkers.pop(next(iter(self._linkers))).close()
        self._linkers[key] = linker  # the last one used is the last to go
        linked = linker.link(text)
        return linked.text, linked.values

    def _count_tokens(self, text: str) -> int:
        if self._tokenizer is None:
            return math.ceil(len(text) / _LETTERS_PER_TOKEN)
        return len(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _render(self, content: str) -> str:
        return self.render_messages([{"role": "user", "content": content}])

    def render_messages(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the string that the model continues (raw chat of the endpoint)."""
        if self._tokenizer is None:
            raise ValueError("a prompt needs the tokenizer of a model")
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text)


@cache
def _values(sql: str) -> tuple[str, ...]:
    """What the question of an example says."""
    try:
        return tuple(filter_literals(sql, ""))
    except ValueError as error:
        raise UserError(f"prompt.question_examples: {sql!r} is no SQL: {error}") from None


def _condition(value: ValueMatch, dialect: str) -> str:
    """A value as SQL would ask for it."""
    literal = "'" + value.value.replace("'", "''") + "'"
    return f"{sql_name(value.table, dialect)}.{sql_name(value.column, dialect)} = {literal}"


def _load_tokenizer(model: str, chat_template: Path | None) -> PreTrainedTokenizerBase:
    from spftsql.training.artefact import check_place, load_tokenizer

    check_place(model)
    try:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer can be loaded from {model}: {str(error).splitlines()[0]}") from None
    if chat_template is not None:
        if not chat_template.is_file():
            raise UserError(f"chat template {chat_template} does not exist")
        tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise UserError(f"model {model} has no chat template: set model.chat_template to a Jinja file")
    return tokenizer
