"""Self-play, algorithm 1 of SPFT-SQL: the best candidate is trained against the weakest, and becomes one of them.

    C = {M0, M1, …}
    for each iteration:
        main     = the candidate that is best on the selection set
        opponent = the weakest one, or as `selfplay.opponent` says
        pairs    = (x, y, y′ ~ opponent, R = 1 if execution shows y′ to be wrong)
        C        = C and main, trained on the pairs

Every mode plays a line of its own: what one does is the same whichever others are played beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spftsql.records import Example, Mode
from spftsql.selfplay.candidates import Answer, Candidate, Training, accuracy
from spftsql.selfplay.guards import blindness, collapse, saturation
from spftsql.selfplay.near_misses import near_misses
from spftsql.selfplay.play import play_rows, replay_rows
from spftsql.selfplay.players import FROM_LAST, Players, debut, opponents_of, strongest
from spftsql.selfplay.quarantine import contradicted
from spftsql.selfplay.splits import question_parts
from spftsql.selfplay.stages import Stages
from spftsql.training.artefact import read_manifest


@dataclass
class Line:
    """One mode's way through self-play: its candidates, oldest first.

    `last` is what it has come to, and what the table shows. `kept` is what may be served of it: the same, unless the
    last iteration did harm. `stopped` says why it plays no more; it is empty while it goes on.
    """

    mode: Mode
    candidates: list[Candidate]
    last: Candidate
    kept: Candidate
    stopped: str = ""

    def main(self, players: Players) -> Candidate:
        """Whom the next iteration trains: the strongest for the spft modes; the others go on from their last model."""
        return self.last if self.mode in FROM_LAST else strongest(self.candidates, players.scores)


def self_play(
    stages: Stages, labels: Sequence[Example], players: Players, expect: Callable[[Candidate], None]
) -> dict[Mode, Line]:
    """The lines of the configured mode and of the baseline modes, from the candidate that is strongest now.

    The candidates of the configured mode join `players`. Without questions no line gets anywhere, and without rounds of
    VBI-FT, which make them, there is none. Raises `UserError` where there are too few questions for the iterations.
    """
    config = stages.config.selfplay
    if not config.iterations or "play" not in players.exams:
        return {}
    begin = strongest(players.candidates, players.scores)
    modes = dict.fromkeys([*config.baselines, config.mode])
    lines = {mode: Line(mode, list(players.candidates), begin, begin) for mode in modes}
    questions = players.exams["play"].questions
    if not questions:
        for line in lines.values():
            _stop(stages, 1, line, f"no synthetic pair is left for self-play to ask; {begin.name} stays as it is")
        return lines
    if why := blindness(players.exams["selection"].questions, stages.config.gate.alpha):
        stages.run.event("unguarded", why=why)
        stages.report.say(f"  {why}")
    parts = question_parts(questions, config, stages.config.seed)
    near = near_misses(stages, questions, config.near_misses)
    for iteration, asked in enumerate(parts, 1):
        trainings = {
            mode: training
            for mode, line in lines.items()
            if not line.stopped and (training := training_of(stages, iteration, line, players, labels, asked, near))
        }
        if not trainings:
            continue
        newcomers = dict(zip(trainings, stages.train(f"play-{iteration}", list(trainings.values())), strict=True))
        if iteration == config.iterations:
            expect(strongest(lines[config.mode].candidates, players.scores))
        debut(stages, players, f"play-{iteration}", list(newcomers.values()))
        for mode, candidate in newcomers.items():
            join(stages, iteration, lines[mode], players, trainings[mode].start, candidate)
    players.candidates = lines[config.mode].candidates
    return lines


def training_of(
    stages: Stages,
    iteration: int,
    line: Line,
    players: Players,
    labels: Sequence[Example],
    asked: Collection[str],
    near: Mapping[str, Sequence[Answer]],
) -> Training | None:
    """What an iteration trains on the answers of the opponents' debut to the questions `asked` (ids) and on the misses.

    None where that gives nothing to train on, as against an opponent that never errs. The line has then stopped, unless
    the next iteration has other questions.
    """
    config, mode, scores = stages.config.selfplay, line.mode, players.scores
    main, answers = line.main(players), players.of("play")
    opponents = opponents_of(mode, config, main, line.candidates, scores)
    theirs = [a for opponent in opponents for a in answers[opponent.name] if a.example.id in asked]
    bad = contradicted("play", {one.name: answers[one.name] for one in line.candidates}, config.quarantine)
    rows, left_out = play_rows(mode, theirs, stages.sql_row, bad)
    wrong, right = (sum(row.reward == value for row in rows) for value in (1, 0))
    missed = [miss for identity, found in near.items() if identity in asked for miss in found]
    near_rows, _ = play_rows(mode, missed, stages.sql_row, bad)
    rows += near_rows
    names = "nobody" if mode == "sft" else ", ".join(opponent.name for opponent in opponents)
    stages.run.event(
        "play", mode=mode, iteration=iteration, main=main.name, opponent=names, choice=config.opponent,
        scores={one.name: round(scores[one.name], 4) for one in (main, *opponents)},
        opponent_accuracy=round(accuracy(theirs), 4), questions=len(asked), rows=len(rows), wrong=wrong,
        near_misses=sum(row.rejected is not None for row in near_rows), left_out=dict(left_out),
    )  # fmt: skip
    if not rows:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "no questions"
        why = f"{names} made no usable mistakes ({why}); {main.name} stays as it is"
        if config.questions == "all":
            _stop(stages, iteration, line, why)
        else:
            _tell(stages, "skipped", iteration, line, why)
        return None
    if mode.startswith("spft") and wrong and not right and not left_out["right"]:
        stages.report.say(f"  {mode}: {names} got nothing right: every answer counts as wrong, as in SPIN")
    if mode == "spft-a" and not wrong:
        alone = "the near misses alone are wrong" if near_rows else "the gold alone is raised, as in SFT"
        stages.report.say(f"  {mode}: {names} got nothing wrong: {alone}")
    rows += replay_rows(stages, labels, round(len(rows) * config.replay))
    one = len(opponents) == 1 and config.reference == "opponent"
    return Training(
        name=f"{mode}-{iteration}",
        start=main,
        rows=rows,
        optimization=config.optimization,
        mode=mode,
        reference=None if mode == "sft" else opponents[0] if one else main,
        selection=players.exams["selection"].questions,
        details={
            "iteration": iteration,
            "opponent": names,
            "verdicts": dict(Counter(answer.outcome for answer in theirs)),
        },
    )


def join(stages: Stages, iteration: int, line: Line, players: Players, main: Candidate, candidate: Candidate) -> None:
    """A trained candidate becomes one of its line, and the guards look at what it became from `main`.

    Only the configured mode is stopped by a collapse: baselines are there to show what happens.
    """
    config, selection = stages.config, players.of("selection")
    manifest = read_manifest(Path(candidate.path))
    line.candidates.append(candidate)
    line.last = line.kept = candidate
    if why := saturation(manifest.get("margin_start"), config.selfplay.loss):
        stages.run.event("saturated", mode=line.mode, iteration=iteration, candidate=candidate.name, why=why)
        stages.report.say(f"  {line.mode}, iteration {iteration}: {why}")
    why = collapse(selection[main.name], selection[candidate.name], manifest, config.gate.alpha)
    if why is None:
        return
    stages.run.event("collapse", mode=line.mode, iteration=iteration, candidate=candidate.name, why=why)
    if line.mode == config.selfplay.mode and config.selfplay.stop_on_collapse:
        line.kept = main
        _stop(stages, iteration, line, f"{why}; {main.name} is kept")


def _stop(stages: Stages, iteration: int, line: Line, why: str) -> None:
    line.stopped = why
    _tell(stages, "stopped", iteration, line, why)


def _tell(stages: Stages, event: str, iteration: int, line: Line, why: str) -> None:
    stages.run.event(event, mode=line.mode, iteration=iteration, why=why)
    stages.report.say(f"  {line.mode}, iteration {iteration}: {why}")
