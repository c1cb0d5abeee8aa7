"""Templates as data: one per line of a JSON lines file, and the library of them that comes with the package.

A line holds `id`, `sql`, `slots`, `count`, `hardness`, `shapes`, and `parents` where it was derived from others. No
table, column or text of a database stands in it: a shape is a binding with letters for tables, which says which slots
share a table, how many tables each SELECT joins, and in which roles tables join outside the plain key graph. The
library was written for this project; a template is added by writing its statement for any database and extracting it
(`spftsql templates extract`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from spftsql.databases.schema import Schema
from spftsql.errors import UserError
from spftsql.synthesis.joins import Join, key_graph
from spftsql.synthesis.rendering import compile_template
from spftsql.synthesis.templates import Bindings, Slot, Tables, Template

LIBRARY = "library.jsonl"
_FINE = 10**9  # the sum of all weights
_SIDES = ("", "LEFT", "RIGHT", "FULL")


@lru_cache(maxsize=1)
def _library() -> tuple[Template, ...]:
    text = (resources.files("spftsql.synthesis") / LIBRARY).read_text(encoding="utf-8")
    return tuple(_templates(text, LIBRARY))


def library() -> list[Template]:
    """The built-in templates, for databases without labels. `synthesize` fills them with new columns only."""
    return list(_library())


def with_library(pool: Sequence[Template], share: float) -> list[Template]:
    """`pool`, and the built-in templates so that they are drawn with probability `share`; they alone where it is empty.

    A structure that the labels have is theirs.
    """
    if not pool:
        return library()
    if share <= 0:
        return list(pool)
    known = {template.id for template in pool}
    return mixed(pool, [template for template in library() if template.id not in known], share)


def with_file(pool: Sequence[Template], path: Path | None) -> list[Template]:
    """`pool`, and the templates of a file, by their counts; a structure that the labels have is theirs.

    Raises `UserError` for a file that is not there or holds anything else.
    """
    if path is None:
        return list(pool)
    known = {template.id for template in pool}
    return [*pool, *(template for template in read_templates(path) if template.id not in known)]


def mixed(pool: Sequence[Template], added: Sequence[Template], share: float) -> list[Template]:
    """`pool` and `added` so that the latter are drawn with probability `share`; one of them where the other is empty.

    Counts become whole-number weights in the right proportion.
    """
    own, others = sum(template.count for template in pool), sum(template.count for template in added)
    if not own or not others:
        return [*pool, *added]
    first, second = (1 - share) * others, share * own
    scale = _FINE / (own * others)
    weighed = [replace(t, count=round(t.count * first * scale)) for t in pool] if share < 1 else []
    return weighed + [replace(t, count=round(t.count * second * scale)) for t in added]


def read_templates(path: Path) -> list[Template]:
    """The templates of a file that `write_templates` wrote. Raises `UserError` naming the line that is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"templates file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"templates file {path} cannot be read: it is no UTF-8 text") from None
    return _templates(text, str(path))


def write_templates(templates: Iterable[Template], schemas: Mapping[str, Schema]) -> str:
    """Templates as lines of JSON; `schemas` are those of their bindings' databases."""
    return "".join(json.dumps(_to_json(template, schemas), ensure_ascii=False) + "\n" for template in templates)


def shape(bindings: Bindings, template: Template, schema: Schema) -> Bindings:
    """Bindings without anything of their database: tables are letters, columns slots, of joins the roles remain.

    A role that several columns of a table have is numbered from the second on: `fk`, `fk2`. Of the values only numbers
    that nothing of a database takes the place of remain: counts, and parts of formulas.
    """
    graph = key_graph(schema)
    letters: dict[str, str] = {}
    ends: dict[tuple[str, str], list[str]] = {}
    kept = {slot.name for slot in template.slots if slot.operator in ("count", "free")}

    def letter(table: str) -> str:
        return letters.setdefault(table, _letter(len(letters)))

    def role(table: str, column: str) -> str:
        found = graph.role((table, column))
        columns = ends.setdefault((table, found), [])
        if column not in columns:
            columns.append(column)
        number = columns.index(column) + 1
        return f"{found}{number}" if found and number > 1 else found

    def joined(tables: Tables) -> Tables:
        joins = tables.joins
        if joins is not None:
            joins = tuple(
                Join(
                    tuple(
                        (left, role(tables.tables[left], column), role(tables.tables[place], own))
                        for left, column, own in join.equalities
                    ),
                    join.side,
                )
                for place, join in enumerate(joins, 1)
            )
        return Tables(tuple(letter(table) for table in tables.tables), joins)

    scopes = tuple(joined(tables) for tables in bindings.scopes)
    columns = {slot: (letter(column[0]), slot) for slot, column in bindings.columns.items()}
    values = {n: v for n, v in bindings.values.items() if n in kept and not isinstance(v, str)}
    return Bindings("", columns, values, scopes)


def _letter(number: int) -> str:
    return ascii_lowercase[number] if number < len(ascii_lowercase) else f"a{number}"


def _to_json(template: Template, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    shapes: list[dict[str, Any]] = []
    for bindings in template.bindings:
        one = shape(bindings, template, schemas[bindings.db_id]) if bindings.db_id else bindings
        tree = {
            "columns": {slot: column[0] for slot, column in one.columns.items()},
            "values": dict(one.values),
            "scopes": [
                {"tables": list(scope.tables)}
                | (
                    {}
                    if scope.joins is None
                    else {"joins": [[j.side, list(map(list, j.equalities))] for j in scope.joins]}
                )
                for scope in one.scopes
            ],
        }
        if tree not in shapes:
            shapes.append(tree)
    slots = [
        {"name": s.name, "role": s.role, "kind": s.kind}
        | ({"key": s.key} if s.key else {})
        | ({"of": list(s.of), "operator": s.operator} if s.role == "value" else {})
        for s in template.slots
    ]
    return {
        "id": template.id,
        "sql": template.sql,
        "slots": slots,
        "count": template.count,
        "hardness": template.hardness,
        "shapes": shapes,
    } | ({"parents": list(template.parents)} if template.parents else {})


def _templates(text: str, where: str) -> list[Template]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(_from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise UserError(f"{where}, line {number} is not a template: {reason}") from None
    if not found:
        raise UserError(f"{where} holds no templates")
    return found


def _from_json(tree: dict[str, Any]) -> Template:
    slots = tuple(Slot(**{**slot, "of": tuple(slot.get("of", ()))}) for slot in tree["slots"])
    parents = tuple(map(str, tree.get("parents", ())))
    template = Template(
        str(tree["id"]), str(tree["sql"]), slots, int(tree["count"]), str(tree["hardness"]), parents=parents
    )
    compiled = compile_template(template.sql)
    named = {slot.name for slot in slots}
    bindings = []
    for one in tree["shapes"]:
        scopes = tuple(
            Tables(
                tuple(map(str, scope["tables"])),
                tuple(_join(join) for join in scope["joins"]) if "joins" in scope else None,
            )
            for scope in one["scopes"]
        )
        columns = {slot: (str(table), slot) for slot, table in one["columns"].items()}
        if len(scopes) != len(compiled.parents) or not set(columns) <= named:
            raise ValueError("its shape does not fit its SQL")
        if not all(map(_joined_in_order, scopes)):
            raise ValueError("its joins do not fit its tables")
        bindings.append(Bindings("", columns, one["values"], scopes))
    needed = {mention.slot for mention in compiled.mentions} - {"*"}
    if not needed <= named or not all(needed <= set(one.columns) for one in bindings):
        raise ValueError("a slot of its SQL is not described")
    return replace(template, bindings=tuple(bindings))


def _joined_in_order(tables: Tables) -> bool:
    """Whether each table after the first has its join, to earlier ones; also where joins are left to the keys."""
    if tables.joins is None:
        return True
    earlier = all(0 <= left < place for place, join in enumerate(tables.joins, 1) for left, _, _ in join.equalities)
    return earlier and len(tables.joins) == max(len(tables.tables) - 1, 0)


def _join(tree: list[Any]) -> Join:
    side, equalities = tree
    if side not in _SIDES:
        raise ValueError(f"no join is {side}")
    return Join(tuple((int(left), str(column), str(own)) for left, column, own in equalities), side)
