"""How a session on a PostgreSQL server is set up: what it is told when it starts, and whose rights it may have."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from spftsql.errors import UserError
from spftsql.sandbox.location import Location

_CONNECT_SECONDS = 10

# What a user may set otherwise in the URL (`?options=-c%20TimeZone%3DEurope/Berlin`).
_DEFAULTS = {"TimeZone": "UTC"}
# What results depend on, so that every replica writes the same ones.
_PORTABLE = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "synchronize_seqscans": "off",
    "default_transaction_isolation": "read committed",  # standbys do not have all others
    "max_parallel_workers_per_gather": "0",  # sums of floats depend on who adds what first
    "jit": "off",
}

# An empty text, or what is wrong with the role. `current_user` is who asks, whatever was asked to log in.
ROLE_PROBLEM = """
    SELECT CASE
        WHEN rolsuper THEN 'is a superuser'
        WHEN pg_has_role(oid, 'pg_read_server_files', 'USAGE') THEN 'may read files of the server'
        WHEN pg_has_role(oid, 'pg_write_server_files', 'USAGE') THEN 'may write files of the server'
        WHEN pg_has_role(oid, 'pg_execute_server_program', 'USAGE') THEN 'may run programs on the server'
        ELSE ''
    END, rolname
    FROM pg_roles WHERE rolname = current_user
"""


def connection_string(address: str, settings: Mapping[str, str], application: str = "spftsql") -> str:
    """What libpq connects with: the URL of a user, and what the URL cannot change: `settings`, and the session's name.

    Raises `UserError` when it is no URL that libpq understands; its own message could hold the password.
    """
    try:
        parameters = conninfo_to_dict(address)
    except ProgrammingError:
        parameters = {"port": "unknown"}
    if not str(parameters.get("port") or "0").replace(",", "").isdigit():  # a password with a slash ends up there
        form = "postgresql://USER@HOST:PORT/DATABASE, with %-signs for what has a meaning in URLs"
        raise UserError(f"database {Location('postgresql', address)}: not an address of PostgreSQL; write {form}")
    options = [_options(_DEFAULTS), str(parameters.get("options") or ""), _options({**_PORTABLE, **settings})]
    defaults = {"connect_timeout": str(_CONNECT_SECONDS)}
    given = {name: str(value) for name, value in parameters.items() if value is not None}
    fixed = {"client_encoding": "UTF8", "application_name": application, "options": " ".join(filter(None, options))}
    return make_conninfo(**{**defaults, **given, **fixed})


def role_advice(role: str, problem: str) -> str:
    """One line for a role that is refused."""
    return (
        f"the role {role} {problem}, and statements of a model are not run with such rights; make a role that can "
        "only read: CREATE ROLE reader LOGIN PASSWORD '…'; GRANT USAGE ON SCHEMA public TO reader; "
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"
    )


def _options(settings: Mapping[str, str]) -> str:
    # A blank ends an option where no backslash stands before it.
    return " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items())
