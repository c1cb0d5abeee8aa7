"""The endpoint from a terminal: ask it, watch the SQL being written, show the answer; and a conversation with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from spftsql.errors import Fault, UserError
from spftsql.serving.endpoint import KEY_VARIABLE

_ANSWER_S = 300.0
_HELP = """Ask in plain words. A further question may lean on the one before it.
/db NAME    another database       /tables    its tables
/n NUMBER   samples that vote      /sql SQL   a statement of your own, in the sandbox
/fix SQL    what the last SQL should have been, kept as a label
/up /down   whether the last answer was right
/new        forget what was asked  /quit      leave (also Ctrl-D)"""


def ask(
    url: str, database: str | None, question: str, key: str | None = None, n: int = 1, evidence: str = ""
) -> dict[str, Any]:
    """The endpoint's answer to a question (`POST /v1/sql`).

    `database` may be left out where only one is served; `key` defaults to the environment variable
    `SPFTSQL_API_KEY`. Raises `UserError` when nothing answers at `url` and when the endpoint refuses the
    question, `Fault` when it fails.
    """
    key = key or os.environ.get(KEY_VARIABLE)
    body = {"database": database or only_database(url, key), "question": question, "n": n, "evidence": evidence}
    return call(url, "POST", "/v1/sql", key, body)


def only_database(url: str, key: str | None) -> str:
    """The only database that the endpoint has for this key. Raises `UserError` when there are several."""
    served: list[str] = [entry["id"] for entry in call(url, "GET", "/v1/databases", key)["data"]]
    if len(served) != 1:
        raise UserError(f"name one of the endpoint's databases with --database: {', '.join(served)}")
    return served[0]


def call(url: str, method: str, path: str, key: str | None, body: Any = None) -> dict[str, Any]:
    """One request. Raises as `ask`."""
    with _reaching(url):
        response = httpx.request(
            method, f"{url.rstrip('/')}{path}", json=body, headers=_headers(key), timeout=_ANSWER_S
        )
        _check(url, response)
        answer: dict[str, Any] = response.json()
    return answer


def ask_live(
    url: str,
    database: str | None,
    question: str,
    console: Console,
    key: str | None = None,
    n: int = 1,
    evidence: str = "",
) -> dict[str, Any]:
    """As `ask`, and the SQL is shown while it is being written, where the console is a terminal."""
    if not console.is_terminal:
        return ask(url, database, question, key, n, evidence)
    key = key or os.environ.get(KEY_VARIABLE)
    database = database or only_database(url, key)
    answer: dict[str, Any] = {}
    sql = ""
    body = {"database": database, "question": question, "n": n, "evidence": evidence, "stream": True}
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        for name, data in _events(url, key, body):
            if name == "token" and data["index"] == 0:
                sql += data["text"]
                live.update(_highlighted(sql))
            elif name == "repair":
                sql = ""
                live.update(Text(f"{data['reason']}; trying once more", style="yellow"))
            elif name == "error":
                raise Fault(f"the endpoint at {url} failed: {data['error']['message']}")
            elif name != "token":
                answer |= data
    if "timings" not in answer:
        raise Fault(f"the endpoint at {url} broke off")
    return answer


def _events(url: str, key: str | None, body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of a streamed answer."""
    with (
        _reaching(url),
        httpx.stream("POST", f"{url.rstrip('/')}/v1/sql", json=body, headers=_headers(key), timeout=_ANSWER_S) as reply,
    ):
        if reply.status_code != httpx.codes.OK:
            reply.read()
            _check(url, reply)
        name = ""
        for line in reply.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


class _reaching:
    """Turns what goes wrong on the way into errors with a line that helps."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        url = self._url
        if isinstance(error, httpx.ConnectError):
            raise UserError(
                f"no endpoint answers at {url}: start one with `spftsql serve`, or name its --url"
            ) from None
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            raise UserError(f"{url} is not the address of an endpoint: {error}") from None
        if isinstance(error, httpx.TransportError):
            raise Fault(f"the endpoint at {url} broke off: {error or type(error).__name__}") from None
        if isinstance(error, json.JSONDecodeError):
            raise UserError(f"what answers at {url} is not this endpoint") from None


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _check(url: str, response: httpx.Response) -> None:
    if response.status_code >= 500:
        raise Fault(f"the endpoint at {url} failed ({response.status_code}): {_message(response)}")
    if response.status_code != httpx.codes.OK:
        raise UserError(_message(response))


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase


def render_answer(answer: Mapping[str, Any]) -> RenderableType:
    """An answer for the terminal: the SQL, what execution said, the other candidates, and the rows."""
    verdict = answer["verdict"]
    line = Text(verdict["status"], style={"ran": "green", "unsure": "yellow"}.get(verdict["status"], "red"))
    if verdict["reason"]:
        line.append(f": {verdict['reason']}", style="default")
    line.append(f"  {verdict['elapsed_ms']:.1f} ms in the database")
    if "timings" in answer:
        line.append(f", {answer['timings']['total_ms']:.0f} ms in all")
    parts: list[RenderableType] = [_highlighted(answer["sql"]), line]
    candidates = answer.get("candidates", [])
    if len(candidates) > 1:
        votes = Table(show_header=False, box=None, padding=(0, 1))
        for candidate in candidates:
            votes.add_row(f"{candidate['votes']}×", candidate["status"], _highlighted(candidate["sql"]))
        parts.append(votes)
    if answer["columns"]:
        parts.append(_rows_table(answer["columns"], answer["rows"]))
        more = " (there are more)" if answer["truncated"] else ""
        parts.append(Text(f"{len(answer['rows'])} rows{more}", style="dim"))
    return Group(*parts)


def _highlighted(sql: str) -> Syntax:
    return Syntax(sql, "sql", background_color="default", word_wrap=True)


def _rows_table(columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(Text(_shown(column)))
    for row in rows:
        table.add_row(*(Text("NULL", style="dim") if cell is None else Text(_shown(cell)) for cell in row))
    return table


def _shown(cell: object) -> str:
    """Cells come from a database: what would steer the terminal is shown instead of obeyed."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(cell))


@dataclass
class Conversation:
    """What `spftsql chat` keeps between two lines: where it asks, and the last question with its SQL."""

    url: str
    database: str
    key: str | None
    n: int = 1
    question: str = ""
    sql: str = ""

    def hint(self) -> str:
        """The question before, for the model to understand one that leans on it; empty at first."""
        return f"The question before was: {self.question} Its SQL: {self.sql}" if self.sql else ""


def run_chat(url: str, database: str | None, n: int, console: Console) -> None:
    """Asks for questions until the end of the input, and shows their answers. Raises as `ask` at the start alone."""
    key = os.environ.get(KEY_VARIABLE)
    served = [entry["id"] for entry in call(url, "GET", "/v1/databases", key)["data"]]
    if not served:
        raise UserError("this key may ask no database")
    if database is not None and database not in served:
        raise UserError(f"no database {database}; known: {', '.join(served)}")
    talk = Conversation(url, database or served[0], key, n)
    console.print(f"Database {talk.database} of {', '.join(served)}. /help says what else can be typed.", markup=False)
    while True:
        try:
            line = console.input(Text(f"{talk.database}> ", style="bold")).strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        if not line:
            continue
        try:
            _turn(talk, line, served, console)
        except KeyboardInterrupt:
            console.print("given up", style="yellow")
        except (UserError, Fault) as error:
            console.print(str(error), style="red", markup=False)


def _turn(talk: Conversation, line: str, served: Sequence[str], console: Console) -> None:
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line.startswith("/"):
        answer = ask_live(talk.url, talk.database, line, console, talk.key, talk.n, talk.hint())
        talk.question, talk.sql = line, answer["sql"]
        console.print(render_answer(answer))
    elif command == "/help":
        console.print(_HELP, markup=False)
    elif command == "/new":
        talk.question = talk.sql = ""
    elif command == "/db":
        if rest not in served:
            raise UserError(f"no database {rest}; known: {', '.join(served)}")
        talk.database, talk.question, talk.sql = rest, "", ""
    elif command == "/n":
        if not rest.isdigit() or int(rest) < 1:
            raise UserError("/n takes a number from 1 to 16")
        talk.n = int(rest)
    elif command == "/tables":
        entries = call(talk.url, "GET", "/v1/databases", talk.key)["data"]
        for table in next(entry["tables"] for entry in entries if entry["id"] == talk.database):
            console.print(f"{_shown(table['name'])}: {_shown(', '.join(table['columns']))}", markup=False)
    elif command == "/sql":
        body = {"database": talk.database, "sql": rest}
        console.print(render_answer(call(talk.url, "POST", "/v1/query", talk.key, body)))
    elif command in ("/up", "/down", "/fix"):
        _feedback(talk, command, rest, console)
    else:
        raise UserError(f"{command} is not known; /help says what is")


def _feedback(talk: Conversation, command: str, correction: str, console: Console) -> None:
    if not talk.sql:
        raise UserError("nothing has been asked yet")
    if command == "/fix" and not correction:
        raise UserError("write the right SQL after /fix")
    body = {"database": talk.database, "question": talk.question, "sql": talk.sql}
    body |= {"rating": "up" if command == "/up" else "down"}
    if correction:
        body["corrected"] = correction
    stored = call(talk.url, "POST", "/v1/feedback", talk.key, body)
    console.print("kept as a label" if stored["labelled"] else "kept", style="dim")
