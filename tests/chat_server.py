"""A small OpenAI-compatible server for tests: it answers from a table, and misbehaves as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Trouble = Callable[[int, dict[str, Any]], tuple[int, Any] | None]


@dataclass
class Chat:
    """What the server does: `answers` maps a question to its texts (taken in turn); `trouble` comes before an answer.

    `trouble(number, body)` gives a status and a body to send instead, `(0, …)` to break the connection off, or None.
    """

    answers: Callable[[str], list[str]]
    trouble: Trouble = lambda number, body: None
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    most_at_once: int = 0

    @property
    def questions(self) -> list[str]:
        """The questions that were asked, in the order in which they came."""
        return [question_of(body) for body in self.bodies]


def question_of(body: dict[str, Any]) -> str:
    """The question in the last message of a request."""
    return str(body["messages"][-1]["content"]).rpartition("Question: ")[2]


@contextmanager
def chat_server(chat: Chat) -> Iterator[Chat]:
    """Serves `chat` on a free port of this machine."""
    lock, at_once = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(chat.bodies)
                chat.bodies.append(body)
                chat.keys.add(self.headers.get("Authorization", ""))
                at_once[0] += 1
                chat.most_at_once = max(chat.most_at_once, at_once[0])
            try:
                status, tree = (404, {}) if self.path != "/v1/chat/completions" else self.reply(number, body)
            finally:
                with lock:
                    at_once[0] -= 1
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            text = tree if isinstance(tree, str) else json.dumps(tree)
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def reply(self, number: int, body: dict[str, Any]) -> tuple[int, Any]:
            if (trouble := chat.trouble(number, body)) is not None:
                return trouble
            texts = chat.answers(question_of(body))
            count = body.get("n", 1)
            begin = body["seed"] % len(texts) if count == 1 and body["temperature"] else 0
            chosen = [texts[(begin + i) % len(texts)] for i in range(count)]
            choices = [
                {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                for i, text in enumerate(chosen)
            ]
            return 200, {"choices": choices, "usage": {"prompt_tokens": 100, "completion_tokens": 7 * count}}

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
