"""Asks a model a benchmark's questions and scores the answers: greedy, and the majority of several samples.

Self-consistency: of `n` samples the one whose result most samples agree on (Wang et al., arXiv 2203.11171, with
agreement of execution results in the place of equal answers, as in MBR-EXEC, Shi et al., arXiv 2204.11454).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spftsql.databases.catalogue import open_catalogue
from spftsql.databases.files import database_location
from spftsql.errors import Fault, UserError
from spftsql.evaluation.answers import Answerer, AnswerFile, Ask, Reply, Wanted, write_predictions
from spftsql.evaluation.keyed_predictions import drawn_mark
from spftsql.evaluation.predictions import Predictions
from spftsql.evaluation.score_result import ScoreResult
from spftsql.evaluation.scoring import (
    ScoreOptions,
    Task,
    check_metrics,
    needed_databases,
    score_predictions,
    scored_source,
)
from spftsql.evaluation.sources import Questions, read_split
from spftsql.evaluation.threads import VerifierThreads
from spftsql.records import VerificationRequest, content_hash
from spftsql.serving.voting import vote
from spftsql.verification.batches import batches_by_database

GREEDY, SAMPLES, VOTED = "greedy.jsonl", "samples.jsonl", "voted.jsonl"
_BATCH = 64
_NAMED = 3


@dataclass(frozen=True)
class Edition:
    """What a benchmark is called here, and how it is published: `mark` is a file that only this one has."""

    benchmark: str
    split: str | None = None
    mark: str = ""
    field: str = ""  # of its questions' rows


EDITIONS = {
    "spider": Edition("spider", "dev"),
    "spider-test": Edition("spider", "test"),
    "spider-syn": Edition("spider", "dev", field="SpiderSynQuestion"),
    "spider-realistic": Edition("spider", "dev", mark="spider-realistic.json"),
    "spider-dk": Edition("spider", "dev", mark="Spider-DK.json"),
    "bird": Edition("bird", "dev"),
    "bird-mini": Edition("bird", "mini_dev"),
    "geoquery": Edition("geoquery"),
    "jsonl": Edition("jsonl"),
}


@dataclass(frozen=True)
class EvaluateOptions:
    """What to ask and how. `score` says the rest: databases, policy, metrics, limits; its files are in `folder`."""

    edition: str
    folder: Path
    score: ScoreOptions
    n: int = 8
    temperature: float = 0.8
    max_tokens: int = 256
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Effort:
    """What the answers took. `kept` were there from before; times are of this evaluation alone."""

    requests: int
    kept: int
    tokens: int
    prompt_tokens: int | None
    cut: int
    unasked: int
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Greedy and voted answers of one model to the same questions; `voted` is None where `n` is 1."""

    model: str
    edition: str
    seed: int
    n: int
    temperature: float
    asked: int
    of: int
    prompts: str  # a hash of all prompts
    greedy: ScoreResult
    voted: ScoreResult | None
    effort: Effort
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> int:
        """Questions that could not be verified for our reasons."""
        return len(self.greedy.faults) + (len(self.voted.faults) if self.voted else 0)

    def to_json(self) -> str:
        """All of it as JSON; `greedy` and `voted` have the form of `spftsql score --json`."""
        tree: dict[str, Any] = {
            "model": self.model,
            "benchmark": self.edition,
            "seed": self.seed,
            "n": self.n,
            "temperature": self.temperature,
            "questions": self.asked,
            "of": self.of,
            "prompts": self.prompts,
            "effort": asdict(self.effort),
            "notes": list(self.notes),
            "greedy": json.loads(self.greedy.to_json()),
            "voted": None if self.voted is None else json.loads(self.voted.to_json()),
        }
        return json.dumps(tree, indent=1, ensure_ascii=False)


def evaluate(options: EvaluateOptions, answerer: Answerer, task: Task) -> Evaluation:
    """Asks, votes and scores. Answers are kept in `options.folder` as they come; another call goes on with them.

    Raises `UserError` for what the user can mend, and `Fault` when questions could not be asked or executed for our
    reasons: then nothing is scored, and what was answered is kept.
    """
    check_metrics(options.score)
    whole = read_edition(options.edition, options.score.root, options.score.split)
    score = replace(
        options.score,
        benchmark=EDITIONS[options.edition].benchmark,
        split=whole.split,
        predictions=options.folder / GREEDY,
        against=None,
    )
    test = drawn(whole, options.limit, options.seed, needed_databases(score, whole))
    wanted = _wanted(options, score, test, answerer, task)
    mark = drawn_mark(test)
    files = {name: AnswerFile(options.folder / name, rows, answerer, mark) for name, rows in wanted.items()}
    effort = _ask(files, answerer, task)
    greedy = Predictions(
        tuple(files[GREEDY].statements(index)[0] for index in test.indices), "by index", _cut_note(files)
    )
    voted = None
    if SAMPLES in files:
        statements = _voted(score, test, files[SAMPLES], task)
        write_predictions(options.folder / VOTED, _rows(test, statements))
        voted = Predictions(tuple(statements), "by index")
    by_greedy = score_predictions(score, test, [greedy], task)
    by_vote = None
    if voted is not None and not by_greedy.faults:
        aside = replace(score, predictions=options.folder / VOTED, against=options.folder / GREEDY)
        by_vote = score_predictions(aside, test, [voted, greedy], task)
    return Evaluation(
        model=answerer.name,
        edition=options.edition,
        seed=options.seed,
        n=options.n,
        temperature=options.temperature,
        asked=len(test.rows),
        of=len(whole.rows),
        prompts=content_hash([item.ask.prompt for item in wanted[GREEDY]]),
        greedy=by_greedy,
        voted=by_vote,
        effort=effort,
        notes=_notes(test, whole, options, files),
    )


def read_edition(edition: str, root: Path, split: str | None) -> Questions:
    """The questions of a benchmark by the name that it has here.

    Raises `UserError` for an unknown name, and where `root` holds another edition than the one named.
    """
    if edition not in EDITIONS:
        raise UserError(f"unknown benchmark {edition}; known: {', '.join(EDITIONS)}")
    known = EDITIONS[edition]
    if known.mark and root.is_dir() and not (root / known.mark).is_file():
        raise UserError(f"{edition}: {known.mark} is missing in {root}; name the folder of {edition} itself")
    questions = read_split(known.benchmark, root, split or known.split)
    if not questions.rows:
        raise UserError(f"{edition}: no questions in {', '.join(map(str, questions.files))}")
    if known.field and known.field not in questions.files[0].read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{edition}: {questions.files[0]} has no {known.field}: it is not {edition}'s")
    return questions


def drawn(questions: Questions, limit: int | None, seed: int, databases: Container[str]) -> Questions:
    """At most `limit` of the questions, drawn by the seed, in their own order; a higher limit draws others besides.

    Those of which the database is not here are the last to be drawn.
    """
    if limit is None or limit >= len(questions.rows):
        return questions
    order = list(range(len(questions.rows)))
    random.Random(f"questions-{seed}").shuffle(order)
    order.sort(key=lambda index: questions.rows[index].db_id not in databases)
    return questions.only(order[:limit])


def _wanted(
    options: EvaluateOptions, score: ScoreOptions, test: Questions, answerer: Answerer, task: Task
) -> dict[str, list[Wanted]]:
    """What is asked for each file: every question that has a database, by its place in the benchmark."""
    catalogue = open_catalogue(needed_databases(score, test).values())
    questions = dict(zip(test.indices, test.rows, strict=True))
    prompts: dict[int, str] = {}
    with task("prompts") as progress:
        # A database at a time: what a prompt needs of it is opened once.
        order = sorted(questions, key=lambda index: (questions[index].db_id, index))
        for number, index in enumerate(order):
            question = questions[index]
            if question.db_id in catalogue:
                prompts[index] = answerer.prompt(catalogue[question.db_id], question)
            progress(number + 1, len(order))

    def row(index: int, n: int, temperature: float, kind: str) -> Wanted:
        question = questions[index]
        seed = int(content_hash(options.seed, kind, question.db_id, question.question, index), 16) % 2**31
        ask = Ask(index, question.db_id, prompts[index], n, temperature, options.max_tokens, seed)
        return Wanted(ask, question, catalogue[question.db_id])

    wanted = {GREEDY: [row(index, 1, 0.0, "greedy") for index in sorted(prompts)]}
    if options.n > 1:
        wanted[SAMPLES] = [row(index, options.n, options.temperature, "samples") for index in sorted(prompts)]
    return wanted


def _ask(files: Mapping[str, AnswerFile], answerer: Answerer, task: Task) -> Effort:
    asks = {id(ask): (ask, file) for file in files.values() for ask in file.missing()}
    kept = sum(len(file.replies) for file in files.values())
    begin = time.monotonic()
    faults: dict[int, str] = {}
    if asks:
        with task("answers") as progress:
            done = 0

            def keep(ask: Ask, reply: Reply) -> None:
                nonlocal done
                asks[id(ask)][1].add(ask.index, reply)
                done += 1
                progress(done, len(asks))

            faults = answerer.answer([ask for ask, _ in asks.values()], keep)
    if faults:
        named = "; ".join(f"question {index}: {fault}" for index, fault in sorted(faults.items())[:_NAMED])
        folder = next(iter(files.values())).path.parent
        raise Fault(
            f"{len(faults)} questions were not answered ({named}); what was answered is kept in {folder}, the same "
            "command goes on with it"
        )
    replies = [reply for file in files.values() for reply in file.replies.values()]
    known = [reply.prompt_tokens for reply in replies if reply.prompt_tokens is not None]
    return Effort(
        requests=len(asks),
        kept=kept,
        tokens=sum(reply.tokens for reply in replies),
        prompt_tokens=sum(known) if known else None,
        cut=sum(reply.cut for reply in replies),
        unasked=sum(bool(reply.problem) for reply in files[GREEDY].replies.values()),
        seconds=time.monotonic() - begin,
    )


def _voted(score: ScoreOptions, test: Questions, samples: AnswerFile, task: Task) -> list[str]:
    """The statement that wins the vote among each question's samples; equal statements are executed once."""
    statements = [samples.statements(index) for index in test.indices]
    databases = needed_databases(score, test)
    sources = {name: scored_source(database_location(database.url)) for name, database in databases.items()}
    policy = score.policy or "strict"
    names: dict[tuple[str, str], str] = {}
    for question, sqls in zip(test.rows, statements, strict=True):
        if question.db_id in sources:
            for sql in sqls:
                names.setdefault((question.db_id, sql), str(len(names)))
    requests = [VerificationRequest(name, db_id, sql, None, policy) for (db_id, sql), name in names.items()]
    with (
        VerifierThreads(sources, score.limits, score.workers, score.cache, digests=True) as threads,
        task("vote") as progress,
    ):
        verdicts = threads.verify(batches_by_database(requests, _BATCH), progress)
    lost = [name for name in names.values() if name not in verdicts or verdicts[name].fault]
    if lost:
        first = next((verdicts[name].fault for name in lost if name in verdicts), "the sandbox failed")
        raise Fault(f"{len(lost)} statements could not be executed ({first}); the answers are kept, run again")
    winners = []
    for question, sqls in zip(test.rows, statements, strict=True):
        if question.db_id not in sources:
            winners.append("")
            continue
        found = [verdicts[names[question.db_id, sql]] for sql in sqls]
        winners.append(vote(sqls, found)[0].sql)
    return winners


def _rows(test: Questions, statements: Sequence[str]) -> list[dict[str, object]]:
    mark = drawn_mark(test)
    return [
        {"index": index, "db_id": question.db_id, "question": question.question, "predicted_sql": sql, **mark}
        for index, question, sql in zip(test.indices, test.rows, statements, strict=True)
    ]


def _cut_note(files: Mapping[str, AnswerFile]) -> tuple[str, ...]:
    cut = sum(reply.cut for reply in files[GREEDY].replies.values())
    return (f"{cut} greedy answers were cut off at the limit of tokens (--max-tokens)",) if cut else ()


def _notes(
    test: Questions, whole: Questions, options: EvaluateOptions, files: Mapping[str, AnswerFile]
) -> tuple[str, ...]:
    notes = []
    if len(test.rows) < len(whole.rows):
        notes.append(f"{len(test.rows)} of {len(whole.rows)} questions, drawn with seed {options.seed}")
    problems = [reply.problem for reply in files[GREEDY].replies.values() if reply.problem]
    if problems:
        notes.append(f"{len(problems)} questions could not be put to the model and count as wrong: {problems[0]}")
    return tuple(notes)
