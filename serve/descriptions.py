"""What the endpoint tells of schemas and query plans, in the form of `schemas`."""

from __future__ import annotations

from serve.schemas import ColumnOut, ForeignKeyOut, PlanResponse, PlanStep, SchemaResponse, TableOut, VerdictOut
from spftsql.databases.schema import Column, Schema
from spftsql.sandbox.query_plan import Step, plan_steps
from spftsql.sandbox.result import Execution

_SAMPLES, _LENGTH = 3, 40  # values of a column, and characters of each
_DEPTH = 60  # steps below steps that are shown


def schema_response(schema: Schema, samples: bool) -> SchemaResponse:
    """The schema; `samples` says whether values are shown."""
    return SchemaResponse(
        id=schema.db_id,
        object="schema",
        dialect=schema.dialect,
        tables=[
            TableOut(
                name=table.name,
                rows=table.rows,
                comment=table.comment,
                columns=[_column(column, samples) for column in table.columns],
            )
            for table in schema.tables
        ],
        foreign_keys=[
            ForeignKeyOut(table=key.table, column=key.column, target=key.target, target_column=key.target_column)
            for key in schema.foreign_keys
        ],
    )


def plan_response(sql: str, plan: Execution, index_names: bool) -> PlanResponse:
    """The plan of a statement, without steps where it may not be executed."""
    ran = plan.status == "ran"
    verdict = VerdictOut(status=plan.status, reason=plan.reason, elapsed_ms=round(plan.elapsed_ms, 3))
    steps = plan_steps(plan.engine, plan.rows, index_names) if ran else ()
    return PlanResponse(sql=sql, verdict=verdict, plan=[_step(step) for step in steps])


def _column(column: Column, samples: bool) -> ColumnOut:
    values = [" ".join(str(value).split()) for value in column.samples[:_SAMPLES]] if samples else []
    return ColumnOut(
        name=column.name,
        type=column.sql_type,
        primary_key=column.primary_key,
        comment=column.comment,
        samples=[value if len(value) <= _LENGTH else value[: _LENGTH - 1] + "…" for value in values],
    )


def _step(step: Step, depth: int = 0) -> PlanStep:
    if depth == _DEPTH:
        return PlanStep(name="…", detail="", rows=None, children=[])
    children = [_step(child, depth + 1) for child in step.children]
    return PlanStep(name=step.name, detail=step.detail, rows=step.rows, children=children)
