"""Servers of databases, for our own questions to them. What a model wrote is never sent from here."""

from __future__ import annotations

import psycopg

from spftsql.databases.reading import quoted
from spftsql.databases.schema import Schema
from spftsql.errors import UserError
from spftsql.records import content_hash
from spftsql.sandbox.location import Location
from spftsql.sandbox.postgresql.connection import one_line
from spftsql.sandbox.postgresql.session import ROLE_PROBLEM, connection_string, role_advice

_NAMED = 3  # tables that are named in a warning
_WRITABLE = """
    SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
        AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
    ORDER BY c.oid
"""


def connect(location: Location) -> psycopg.Connection[tuple[object, ...]]:
    """A read-only connection on which every statement is a transaction of its own.

    The first rows of a table are the same ones each time, whoever else reads it.

    Raises `UserError` when there is no such server, login or database.
    """
    string = connection_string(location.address, {"default_transaction_read_only": "on", "synchronize_seqscans": "off"})
    try:
        return psycopg.connect(string, autocommit=True)
    except psycopg.Error as error:
        advice = "check host, port, database, user and password (in the URL, PGPASSWORD or ~/.pgpass)"
        raise UserError(f"database {location} cannot be opened: {one_line(str(error))}; {advice}") from None


def check_server(location: Location) -> list[str]:
    """What should be known before statements of a model are sent there: one line for each thing, often none.

    Raises `UserError` as `connect`, and for a role whose statements the sandbox refuses to send.
    """
    with connect(location) as connection:
        problem, role = connection.execute(ROLE_PROBLEM).fetchone() or ("", "")
        if problem:
            raise UserError(f"database {location}: {role_advice(str(role), str(problem))}")
        tables = [str(name) for (name,) in connection.execute(_WRITABLE)]
    if not tables:
        return []
    names = ", ".join(tables[:_NAMED]) + (", …" if len(tables) > _NAMED else "")
    return [
        f"the role {role} may write to {len(tables)} tables ({names}); nothing is written, because every statement "
        "runs in a read-only transaction, but a role that can only read is safer"
    ]


def server_content(location: Location, schema: Schema) -> str:
    """A hash of the schema and of all rows, in whatever order: the same for copies and replicas, another after changes.

    The server reads every table once. Raises `UserError` as `connect`, and when a table cannot be read.
    """
    parts: list[object] = []
    with connect(location) as connection:
        for table in schema.tables:
            names = ", ".join(quoted(column.name) for column in table.columns)
            rows = f"SELECT {names} FROM {quoted(table.name)}"
            # A sum, because rows have no order, and of 64 bits each, so that no two changes cancel out by chance.
            query = f"SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM ({rows}) AS t"
            try:
                parts.append(connection.execute(query.encode()).fetchone())
            except psycopg.Error as error:
                raise UserError(f"table {table.name} of {location} cannot be read: {one_line(str(error))}") from None
            parts.append([table.name, [(c.name, c.sql_type, c.primary_key) for c in table.columns]])
    return content_hash(parts, [key.to_dict() for key in schema.foreign_keys])
