"""PostgreSQL servers for the tests: in a temporary folder, on a free port, gone when the test or its process is."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

PASSWORD = "pw-4Xf/9&?"  # with what has a meaning in URLs
ESCAPED = "pw-4Xf%2F9%26%3F"

# No durability and little memory; nothing happens in the background that would look like a change.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "40",
    "autovacuum": "off",
    "jit": "off",
    "log_min_messages": "fatal",
}


def programs() -> Path:
    """The folder of the server's programs; skips the test where there is none."""
    found = [Path(path).resolve().parent for path in (shutil.which("initdb"), shutil.which("postgres")) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    for folder in found:
        if (folder / "initdb").is_file():
            return folder
    pytest.skip("PostgreSQL's server is missing (Debian: apt-get install -y postgresql-15)")


def _command(*words: str | Path, die_with_parent: bool = False) -> list[str]:
    """As another user where we are root, as whom the server does not run."""
    user = next((name for name in ("postgres", "nobody") if os.geteuid() == 0 and _known(name)), None)
    prefix = ["setpriv", "--pdeathsig", "QUIT"] if die_with_parent else ["setpriv"]
    if user:
        prefix += [f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
    return [*prefix, *map(str, words)] if len(prefix) > 1 else [str(word) for word in words]


def _known(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


@dataclass
class Server:
    """A running server. `folder` holds its data (`data`), its socket and its log."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str, user: str = "reader") -> str:
        """Over TCP, with the password."""
        return f"postgresql://{user}:{ESCAPED}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres", user: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Over the socket, without a password; each statement commits by itself."""
        return psycopg.connect(
            host=str(self.folder), port=self.port, user=user, dbname=database, autocommit=True, application_name="test"
        )

    def run(self, script: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Runs a script as the superuser; the rows of a last SELECT."""
        with self.connect(database) as connection:
            cursor = connection.execute(script.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def dump(self, *arguments: str) -> bytes:
        """What pg_dump (or, without a database, pg_dumpall) writes."""
        program = "pg_dump" if arguments else "pg_dumpall"
        login = ("-h", self.folder, "-p", str(self.port), "-U", "postgres")
        command = _command(programs() / program, *login, *arguments)
        text = subprocess.run(command, capture_output=True, check=True, cwd="/").stdout
        # Newer ones fence the script with a random word.
        return b"\n".join(line for line in text.splitlines() if not line.startswith((b"\\restrict", b"\\unrestrict")))

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends it orderly and at once, SIGQUIT as a crash would."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="spftsql-pg-"))
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres" if _known("postgres") else "nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    return folder


@contextlib.contextmanager
def _running(folder: Path, settings: dict[str, str]) -> Iterator[Server]:
    port = _free_port()
    place = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": str(folder)}
    options = [f"--{name}={value}" for name, value in {**_SETTINGS, **place, **settings}.items()]
    command = _command(programs() / "postgres", "-D", folder / "data", *options, die_with_parent=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/")
    server = Server(folder, port, process)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                server.connect().close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield server
    finally:
        server.stop(signal.SIGQUIT)


@contextlib.contextmanager
def start_server(**settings: str) -> Iterator[Server]:
    """A server of its own, with a role `reader` that may only log in. Local logins need no password, others do."""
    folder = _make_folder()
    try:
        methods = ("--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8")
        initdb = (programs() / "initdb", "-D", folder / "data", "-U", "postgres", *methods)
        subprocess.run(
            _command(*initdb, "--no-sync", "--no-instructions"), check=True, stdout=subprocess.DEVNULL, cwd="/"
        )
        with _running(folder, settings) as server:
            for role in ("postgres", "reader"):
                create = "ALTER" if role == "postgres" else "CREATE"
                server.run(f"{create} ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def start_standby(primary: Server, **settings: str) -> Iterator[Server]:
    """A hot standby that follows `primary`."""
    folder = _make_folder()
    try:
        login: Sequence[str] = ("-h", str(primary.folder), "-p", str(primary.port), "-U", "postgres")
        copy = _command(programs() / "pg_basebackup", "-D", folder / "data", "-R", "-c", "fast", "--no-sync", *login)
        subprocess.run(copy, check=True, cwd="/")
        with _running(folder, settings) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_shop(server: Server, canary: str) -> str:
    """The database that the corpus is about, made anew, and its surroundings, which hold `canary`; returns its URL."""
    for name in ("shop", "secret"):
        server.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        server.run(f"CREATE DATABASE {name}")
    server.run(f"CREATE TABLE hidden AS SELECT '{canary}' AS x", "secret")
    server.run(_SHOP.replace("CANARY", canary), "shop")
    (server.folder / "secret.txt").write_text(canary)
    return server.url("shop")


# What stands in the views is somebody's own fault, and nothing that a statement can be read to do.
_SHOP = """
    CREATE TABLE people (id int PRIMARY KEY, name text, age int);
    INSERT INTO people SELECT i, 'name ' || i, i % 90 FROM generate_series(0, 1999) AS i;
    CREATE TABLE orders (id int PRIMARY KEY, person int REFERENCES people (id), total numeric(10, 2), note text);
    INSERT INTO orders SELECT i, i % 100, i * 1.25, 'note ' || i FROM generate_series(0, 299) AS i;
    COMMENT ON COLUMN orders.total IS 'in euro';
    COMMENT ON TABLE orders IS 'what was sold';
    CREATE TABLE private AS SELECT 'CANARY' AS note;
    CREATE SEQUENCE numbers;
    CREATE VIEW adults AS SELECT * FROM people WHERE age >= 18;
    CREATE TABLE log (x int);
    CREATE FUNCTION bump() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO log VALUES (1) RETURNING x';
    CREATE FUNCTION run(command text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN EXECUTE command; END';
    CREATE FUNCTION double_of(x int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2 * x';
    CREATE FUNCTION definer_double(x int) RETURNS int LANGUAGE sql IMMUTABLE SECURITY DEFINER AS 'SELECT 2 * x';
    CREATE VIEW bumped AS SELECT bump() AS bumped;
    CREATE VIEW blob AS SELECT lo_create(0)::int AS made;
    CREATE VIEW held AS SELECT pg_try_advisory_lock(42) AS held;
    CREATE VIEW slow AS SELECT pg_sleep(30)::text AS slow;
    CREATE VIEW loose AS SELECT set_config('statement_timeout', '0', false) AS loose;
    CREATE VIEW announced AS SELECT pg_notify('news', 'CANARY')::text AS announced;
    GRANT SELECT ON people, orders, adults, bumped, blob, held, slow, loose, announced, numbers TO reader;
    GRANT USAGE ON SEQUENCE numbers TO reader;
"""
