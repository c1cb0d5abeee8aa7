"""How an engine means to run a statement, as a tree of steps: what `Runner.plan` gives, in one form for all engines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spftsql.sandbox.result import Cell

# What a step of PostgreSQL says of itself beside its kind, table and estimates, in this order.
_POSTGRES_DETAILS = (
    *("Join Type", "Index Name", "Index Cond", "Recheck Cond", "Hash Cond", "Merge Cond", "Join Filter", "Filter"),
    *("Group Key", "Sort Key", "Subplan Name", "CTE Name", "Function Name"),
)
_DUCKDB_ESTIMATE = "Estimated Cardinality"
# SQLite writes the index's name after the word, and what it is searched for in parentheses at the end.
_SQLITE_INDEX = re.compile(r"\bINDEX (?!\().*?((?: \([^()]*\))?)$")


@dataclass(frozen=True)
class Step:
    """One step; it takes the rows of its `children`. `rows` is how many the engine expects, where it says so."""

    name: str
    detail: str = ""
    rows: float | None = None
    children: tuple[Step, ...] = ()


def plan_steps(engine: str, rows: Sequence[tuple[Cell, ...]], index_names: bool = True) -> tuple[Step, ...]:
    """The steps in the rows that `Runner.plan` gave; `engine` is that of the `Execution`.

    Without `index_names` indexes are not named: their names may tell of columns that somebody may not see.
    """
    try:
        return _steps(engine.partition(" ")[0], rows, index_names)
    except RecursionError:
        return (Step("nested too deeply to be shown"),)


def _steps(kind: str, rows: Sequence[tuple[Cell, ...]], index_names: bool) -> tuple[Step, ...]:
    if kind == "sqlite":
        return _sqlite_steps(rows, index_names)
    if kind == "postgresql":
        return tuple(_postgres_step(plan["Plan"], index_names) for (text,) in rows for plan in _tree(text))
    return tuple(_duckdb_step(node) for _, text in rows for node in _tree(text))


def _tree(text: Cell) -> Any:
    return json.loads(text) if isinstance(text, str) else []


def _sqlite_steps(rows: Sequence[tuple[Cell, ...]], index_names: bool) -> tuple[Step, ...]:
    """Rows are (id, parent, unused, text); 0 is the parent of the first steps."""
    below: dict[Cell, list[tuple[Cell, str]]] = {}
    for identity, parent, _, text in rows:
        said = str(text) if index_names else _SQLITE_INDEX.sub(r"INDEX\1", str(text))
        below.setdefault(parent, []).append((identity, said))

    def steps(parent: Cell) -> tuple[Step, ...]:
        return tuple(Step(said, children=steps(identity)) for identity, said in below.get(parent, ()))

    return steps(0)


def _postgres_step(plan: Mapping[str, Any], index_names: bool) -> Step:
    table, alias = plan.get("Relation Name"), plan.get("Alias")
    on = f" on {table}" if table else ""
    name = plan["Node Type"] + on + (f" as {alias}" if table and alias not in (None, table) else "")
    said = [key for key in _POSTGRES_DETAILS if plan.get(key) and (index_names or key != "Index Name")]
    children = tuple(_postgres_step(child, index_names) for child in plan.get("Plans", ()))
    return Step(name, "; ".join(f"{key}: {_text(plan[key])}" for key in said), plan.get("Plan Rows"), children)


def _duckdb_step(node: Mapping[str, Any]) -> Step:
    extra: Mapping[str, Any] = node.get("extra_info") or {}
    estimate = str(extra.get(_DUCKDB_ESTIMATE, ""))
    said = [f"{key}: {_text(value)}" for key, value in extra.items() if value and key != _DUCKDB_ESTIMATE]
    return Step(
        name=node["name"].strip().replace("_", " "),
        detail="; ".join(said),
        rows=float(estimate) if estimate.isdigit() else None,
        children=tuple(_duckdb_step(child) for child in node.get("children", ())),
    )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
