"""A database that is removed while a run is at work: one line says so, and no SQL counts as wrong for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from spftsql.errors import Fault, UserError
from spftsql.records import Example, GenerationRequest, Verdict, VerificationRequest, read_records
from spftsql.selfplay import vbi
from spftsql.selfplay.lineage import Made
from spftsql.selfplay.stages import Stages
from spftsql.synthesis import accepting
from spftsql.synthesis.accepting import Tally, judged, local_executors
from spftsql.synthesis.filling import Sampler
from spftsql.synthesis.templates import Template, extract_pool
from spftsql.verification import local
from tests.local_stages import local_stages, model_of

GOLD = Example("q", "towns", "Which towns are there?", "SELECT name FROM town", "label", "t")


@pytest.fixture
def stages(tmp_path: Path, tiny_models: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stages]:
    for module in (accepting, local):
        monkeypatch.setattr(module, "_PAUSES_S", (0, 0))
    with local_stages(tmp_path, tiny_models[0]) as there:
        yield there


def pool(stages: Stages) -> list[Template]:
    labels = [replace(GOLD, id=sql, sql=sql) for sql in ("SELECT name FROM town WHERE size = 9", GOLD.sql)]
    return extract_pool(labels, {"towns": stages.catalogue["towns"].schema})[0]


def sampler_of(stages: Stages) -> Sampler:
    database = stages.catalogue["towns"]
    return Sampler(pool(stages), {"towns": database.schema}, {"towns": database.location}, 0, 1.0)


def test_between_reflection_and_synthesis(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "towns.sqlite").unlink()
    with pytest.raises(UserError, match=r"^database .*towns\.sqlite cannot be opened: unable to open database file$"):
        vbi.statements(stages, 1, 5, pool(stages), None, [], ["towns"])


def test_between_filling_and_execution_statements_are_set_aside_and_not_wrong(stages: Stages, tmp_path: Path) -> None:
    sampler, tally = sampler_of(stages), Tally()
    sampler.draw()  # opens the values
    (tmp_path / "towns.sqlite").unlink()
    with local_executors({"towns": str(tmp_path / "towns.sqlite")}, stages.config.sandbox) as executors:
        found = list(judged(sampler, executors, 5, tally=tally))
    assert found and {(one.reason, one.verdict.status) for one in found} == {("fault", "unverifiable")}
    assert all("towns.sqlite" in str(one.verdict.fault) for one in found)
    assert tally.accepted == 0 and tally.dropped["fault"] == len(found) and not tally.dropped["error"]


def test_between_filling_and_execution_of_a_round(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = stages.verify

    def removed(title: str, requests: Sequence[VerificationRequest], early: Path | None = None) -> dict[str, Verdict]:
        (tmp_path / "towns.sqlite").unlink(missing_ok=True)
        return verify(title, requests, early)

    monkeypatch.setattr(stages, "verify", removed)
    with pytest.raises(
        Fault, match=r"^sql-1-1: \d+ statements could not be verified \(.*towns\.sqlite.*\); run again$"
    ):
        vbi.statements(stages, 1, 5, pool(stages), None, [], ["towns"])


def test_between_synthesis_and_questions(stages: Stages, tmp_path: Path) -> None:
    """Prompts need the words and values of a database, once."""
    made = [one for one in vbi.statements(stages, 1, 3, pool(stages), None, [], ["towns"]) if not one.reason]
    (tmp_path / "towns.sqlite").unlink()
    elsewhere = replace(stages.catalogue["towns"], content="not read yet")
    stages.catalogue = {"towns": elsewhere}
    with pytest.raises(UserError, match=r"^database .*towns\.sqlite cannot be opened"):
        vbi.phrased(stages, 1, [Made(one.statement, one.verdict) for one in made], model_of(stages), model_of(stages))


def test_while_samples_are_written_and_verified(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples are kept, nothing is said of their SQL, and the same call goes on when the file is back."""
    model, path = model_of(stages), tmp_path / "towns.sqlite"
    requests = [stages.request(f"m/test/{n}", "towns", GOLD.question, model, 2, 0.7) for n in range(3)]
    examples = {request.id: GOLD for request in requests}
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(Fault, match=r"^exam: 6 statements could not be verified \(.*towns\.sqlite.*\); run again$"):
        stages.verified("exam", requests, [model], examples)
    folder = stages.generated("exam")
    assert folder is not None and len(read_records(folder / "requests.parquet", GenerationRequest)) == 3
    path.write_bytes(content)
    monkeypatch.setattr(stages.execution, "generate", lambda *_: pytest.fail("what was stored is asked again"))
    samples, checks, verdicts = stages.verified("exam", requests, [model], examples)
    assert len(samples) == len(checks) == 6 and {check.id for check in checks} == set(verdicts)
    assert not any(verdict.fault for verdict in verdicts.values())
