"""How a run ends: the gate says who is served, the table what each method has reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from spftsql.records import Mode
from spftsql.selfplay.candidates import Answer, Candidate
from spftsql.selfplay.gate import Decision, decide
from spftsql.selfplay.lines import Line
from spftsql.selfplay.players import Players, strongest
from spftsql.selfplay.quarantine import FILE as QUARANTINE
from spftsql.selfplay.quarantine import contradicted, quarantine_lines
from spftsql.selfplay.stages import Stages
from spftsql.selfplay.table import Outcomes, Result, TableExam, markdown, method_row, write_outcomes

METHODS: dict[Mode, str] = {
    "sft": "continued SFT",
    "spin": "SPIN",
    "dpo": "DPO",
    "spft-a": "SPFT-SQL",
    "spft-b": "SPFT-SQL (b)",
}


@dataclass(frozen=True)
class Played:
    """What one way through the loop has made: everybody's answers, and the candidates by what they came from.

    `first` is trained on the labels alone (the base model without any), `control` for as many steps as the last of
    VBI-FT's `rounds`, and `lines` are those of self-play.
    """

    players: Players
    first: Candidate
    control: Candidate | None
    rounds: list[Candidate]
    lines: dict[Mode, Line]

    def challengers(self, mode: Mode) -> dict[str, Candidate]:
        """Whom the gate is asked about, in this order."""
        found = {"VBI-FT": self.rounds[-1]} if self.rounds else {}
        return found | ({"self-play": self.lines[mode].kept} if mode in self.lines else {})

    def finals(self, mode: Mode, labelled: bool) -> dict[str, Candidate]:
        """The rows of the table: each method's last candidate."""
        found = {"SFT on the labels" if labelled else "base model": self.first}
        if self.control is not None:
            found["SFT, as many steps"] = self.control
        for number, candidate in enumerate(self.rounds, 1):
            found["+ VBI-FT" if len(self.rounds) == 1 else f"+ VBI-FT, round {number}"] = candidate
        found |= {f"+ {METHODS[m]}": line.last for m, line in self.lines.items() if m != mode}
        return found | ({f"+ {METHODS[mode]}": self.lines[mode].last} if mode in self.lines else {})


def gate_answers(played: Played, by_fold: Sequence[Played], mode: Mode) -> dict[str, list[Answer]]:
    """What the gate decides on, by candidate: the answers to its questions, and each fold's to its own labels.

    A candidate of a fold stands for the one that was made in the same way from all labels: that which self-play kept
    as it was, is what it was before.
    """
    found = dict(played.players.of("gate"))
    roles = {"first": played.first, **played.challengers(mode)}
    made_by = {candidate.name: role for role, candidate in reversed(roles.items())}
    for one in by_fold:
        of_fold = {"first": one.first, **one.challengers(mode)}
        for name, role in made_by.items():
            answers = one.players.of("gate")[of_fold[role].name]
            found[name] = found[name] + [replace(answer, candidate=name) for answer in answers]
    return found


def settle(stages: Stages, played: Played, gate: Mapping[str, Sequence[Answer]], labelled: bool) -> Result:
    """The gate, on its own questions, then the table, on the test questions (on the selection set where none are)."""
    config, players = stages.config, played.players
    exam: TableExam = "test" if players.exams["test"].questions else "selection"
    test = players.of(exam)
    served, decisions, synthetic = promote(stages, played, gate)
    list_contradictions(stages, players)
    control = played.control
    rows = tuple(
        method_row(method, one.name, test[one.name], test[control.name] if control and one != control else None)
        for method, one in played.finals(config.selfplay.mode, labelled).items()
    )
    files = {
        name: database.location.address if database.location.engine == "sqlite" else database.location.url
        for name, database in stages.catalogue.items()
    }
    notes = tuple(f"{METHODS[mode]}: {line.stopped}" for mode, line in played.lines.items() if line.stopped)
    result = Result(rows, tuple(decisions), served.name, served.path, files, exam, tuple(synthetic), notes)
    begin = strongest([played.first, *played.rounds], players.scores) if players.scores else played.first
    write_outcomes(stages.run, Outcomes.of(exam, begin.name, test))
    stages.run.write("result.json", result.to_json())
    stages.run.write("table.md", markdown(result, f"{config.name} (seed {config.seed})"))
    open_ = {decision.challenger for decision in decisions if decision.outcome == "undecided"}
    stages.keep_weights_of([served, *(c for c in played.challengers(config.selfplay.mode).values() if c.name in open_)])
    stages.run.event("finished", served=served.name)
    return result


def promote(
    stages: Stages, played: Played, gate: Mapping[str, Sequence[Answer]]
) -> tuple[Candidate, list[Decision], list[Decision]]:
    """Who is served, what the gate has decided of each challenger in turn, and the same on the selection set.

    The latter is told and decides nothing: a synthetic gate alone was seen to rise while real accuracy fell.
    """
    config, players, served = stages.config, played.players, played.first
    challengers = list(dict.fromkeys(c for c in played.challengers(config.selfplay.mode).values() if c != served))
    decisions, synthetic = list[Decision](), list[Decision]()
    if not config.gate.enabled or not gate.get(served.name):
        if challengers:
            served = strongest(players.candidates, players.scores)
            why = "no gate set; the best on the selection set is served"
            stages.run.event("gate", outcome=why, served=served.name)
        return served, decisions, synthetic
    selection = players.of("selection")
    for challenger in challengers:
        decision = decide(gate[challenger.name], gate[served.name], config.gate.alpha)
        decisions.append(decision)
        stages.run.event("gate", **asdict(decision))
        if {challenger.name, served.name} <= selection.keys():
            synthetic.append(decide(selection[challenger.name], selection[served.name], config.gate.alpha))
            stages.run.event("gate-synthetic", **asdict(synthetic[-1]))
        if decision.outcome == "better":
            served = challenger
    return served, decisions, synthetic


def list_contradictions(stages: Stages, players: Players) -> None:
    """Writes down, for a person to look at, the golds that most candidates contradict unanimously.

    Only those of the play set are left out of training. Those of the selection and gate sets count all the same: a set
    from which hard questions are taken is another one. The test set is not looked at: the table alone reads it.
    """
    fewest = stages.config.selfplay.quarantine
    read = [exam for exam in players.exams if exam != "test"]
    found = [one for exam in read for one in contradicted(exam, players.of(exam), fewest).values()]
    stages.run.write(QUARANTINE, quarantine_lines(found))
    counts = Counter(one.exam for one in found)
    for exam, count in counts.items():
        stages.run.event("contradicted", exam=exam, count=count, of=len(players.exams[exam].questions))
    if found:
        play = [f"{counts['play']} play golds, not trained on"] if counts["play"] else []
        kept = " and ".join(f"{count} {exam}" for exam, count in counts.items() if exam != "play")
        told = "; ".join(play + ([f"{kept} golds, which count all the same"] if kept else []))
        stages.report.say(f"  contradicted by most candidates, see {QUARANTINE}: {told}")
