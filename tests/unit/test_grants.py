"""A grant gives a part of a schema, and the keys that still join its tables."""

from spftsql.databases.schema import Column, ForeignKey, Schema, Table
from spftsql.serving.grants import Grant


def test_half_of_a_key_is_not_granted() -> None:
    def table(name: str, *columns: str) -> Table:
        return Table(name, tuple(Column(column, "text", "TEXT") for column in columns))

    keys = tuple(ForeignKey("lesson", name, "course", name, 1) for name in ("dept", "number"))
    room = ForeignKey("lesson", "room", "room", "name")
    tables = (table("course", "dept", "number"), table("lesson", "dept", "number", "room"), table("room", "name"))
    schema = Schema("campus", "sqlite", tables, (*keys, room))
    assert Grant.parse(["course", "lesson", "room"]).of(schema).foreign_keys == (*keys, room)
    assert Grant.parse(["course", "lesson.dept", "lesson.room", "room"]).of(schema).foreign_keys == (room,)
