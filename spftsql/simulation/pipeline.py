"""A generation stage with verification behind it, as a discrete-event simulation.

Engines take units of work one after another and leave parts of samples; a part's batches wait for a free verifier,
first come, first served, while engines go on. Nothing here knows what a second of work is made of.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import simpy


@dataclass(frozen=True)
class Part:
    """Some samples: seconds of an engine to write them, then `batches` that take a verifier `batch_s` each."""

    engine_s: float
    batches: int = 0
    batch_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Seconds from the start: until the last sample, and until the last verdict; and all workers' seconds of work."""

    generated_s: float
    wall_s: float
    engines_busy_s: float
    verifiers_busy_s: float


def simulate(units: Sequence[Sequence[Part]], engines: int, verifiers: int, start_s: float = 0.0) -> Outcome:
    """The stage over `units` of parts, which go to engines in this order; each engine first needs `start_s`.

    Raises `ValueError` without engines or verifiers.
    """
    if engines < 1 or verifiers < 1:
        raise ValueError("a stage has at least one engine and one verifier")
    clock = simpy.Environment()
    pool = simpy.Resource(clock, capacity=verifiers)
    left: Iterator[Sequence[Part]] = iter(units)
    engines_busy = verifiers_busy = generated = wall = 0.0

    def engine() -> Generator[simpy.Event, object, None]:
        nonlocal engines_busy, generated, wall
        yield clock.timeout(start_s)
        for unit in left:
            for part in unit:
                yield clock.timeout(part.engine_s)
                engines_busy += part.engine_s
                generated = wall = clock.now
                for _ in range(part.batches):
                    clock.process(verify(part.batch_s))

    def verify(seconds: float) -> Generator[simpy.Event, object, None]:
        nonlocal verifiers_busy, wall
        with pool.request() as turn:
            yield turn
            yield clock.timeout(seconds)
            verifiers_busy += seconds
            wall = clock.now

    for _ in range(engines):
        clock.process(engine())
    clock.run()
    return Outcome(generated, wall, engines_busy, verifiers_busy)
