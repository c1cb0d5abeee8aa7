"""Messages between the sandbox and its child: MessagePack frames behind a length, over a socket pair.

MessagePack and not pickle, because unpickling what comes from a process that runs hostile SQL would hand it the parent.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import msgpack  # type: ignore[import-untyped]

_HEADER = struct.Struct("!I")
_CHUNK = 1 << 16


class Channel:
    """One end of the socket pair. A frame longer than `max_frame` bytes is taken as the end of the peer."""

    def __init__(self, end: socket.socket, max_frame: int) -> None:
        self._socket, self._max_frame = end, max_frame
        self._buffer = bytearray()

    def send(self, message: object, deadline: float | None = None) -> None:
        """Sends one message; raises `TimeoutError` past `deadline` (monotonic seconds), `OSError` without a peer."""
        body = msgpack.packb(message, unicode_errors="surrogatepass")
        self._wait_until(deadline)
        self._socket.sendall(_HEADER.pack(len(body)) + body)

    def receive(self, deadline: float | None = None) -> Any:
        """The next message; raises `TimeoutError` past `deadline`, `EOFError` when the peer is gone."""
        self._fill(_HEADER.size, deadline)
        (length,) = _HEADER.unpack_from(self._buffer)
        if length > self._max_frame:
            raise EOFError("frame too long")
        self._fill(_HEADER.size + length, deadline)
        with memoryview(self._buffer) as view:
            body = bytes(view[_HEADER.size : _HEADER.size + length])
        del self._buffer[: _HEADER.size + length]
        return msgpack.unpackb(body, use_list=False, unicode_errors="surrogatepass")

    def _fill(self, size: int, deadline: float | None) -> None:
        while len(self._buffer) < size:
            self._wait_until(deadline)
            try:
                chunk = self._socket.recv(_CHUNK)
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise EOFError("the other end is closed")
            self._buffer += chunk

    def _wait_until(self, deadline: float | None) -> None:
        if deadline is None:
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline passed")
        self._socket.settimeout(left)

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()
