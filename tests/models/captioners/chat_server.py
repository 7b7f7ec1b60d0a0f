"""A server of OpenAI's protocol on the loopback interface, for tests, with every bad manner.

It really looks at the picture: its caption names the grey level, so that a test sees whether every
caption came to the frame it was asked for. What it does with a request is decided by a function of
the request's number and its JSON.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

MODEL = "tiny-llava"


@dataclass(frozen=True)
class Act:
    """What is done with one request.

    Args:
        wait_s: before anything else.
        status: of the answer.
        headers: of the answer.
        body: of the answer; None: a caption.
        cut: bytes of the body after which the connection is reset; -1: none, 0: before the head.
    """

    wait_s: float = 0.0
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int = -1


Manners = Callable[[int, dict[str, Any]], Act]


@dataclass
class Seen:
    """What the server saw.

    Args:
        bodies: JSON of all requests, in the order they came.
        headers: of these requests.
        times_s: when they came, by the monotonic clock.
        connections: how many were opened.
        most_at_once: requests under way at the same time.
    """

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    connections: int = 0
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def chat_server(
    manners: Manners = lambda number, body: Act(),
    *,
    models: tuple[str, ...] = (MODEL,),
    get_status: int = 200,
    port: int = 0,
) -> Iterator[tuple[str, Seen]]:
    """The address of a server, and what it sees, until the end of the block.

    Args:
        manners: what it does with a request.
        models: that it lists.
        get_status: of the answer with that list.
        port: where it listens; 0: any.
    """
    seen = Seen()

    class Handler(_Handler):
        pass

    Handler.seen, Handler.manners = seen, staticmethod(manners)
    Handler.models, Handler.get_status = models, get_status
    server = _Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def level_of(url: str) -> tuple[int, tuple[int, int]]:
    """Mean grey level and (width, height) of the picture in a `data:` URL."""
    head, data = url.split(",", 1)
    assert head.startswith("data:image/")
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        return round(float(np.asarray(image.convert("RGB")).mean())), image.size


def caption_of(body: dict[str, Any]) -> str:
    """What this server says about the pictures of a request."""
    content = body["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    levels = " and ".join(str(level_of(url)[0]) for url in urls)
    return f"A plain picture of level {levels}."


def answer(text: str | None, **other: Any) -> bytes:
    """The body of a good answer."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{MODEL}-0001",
        "choices": [choice | other],
        "usage": usage,
    }
    return json.dumps(whole).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that were reset, by either side, are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: Seen
    manners: Manners
    models: tuple[str, ...]
    get_status: int

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        with self.seen.lock:
            self.seen.connections += 1

    def do_GET(self) -> None:
        data = json.dumps({"object": "list", "data": [{"id": name} for name in self.models]})
        self._send(self.get_status if self.path == "/v1/models" else 404, {}, data.encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.seen.lock:
            number = len(self.seen.bodies)
            self.seen.bodies.append(body)
            self.seen.headers.append(dict(self.headers.items()))
            self.seen.times_s.append(time.monotonic())
            self.seen.at_once += 1
            self.seen.most_at_once = max(self.seen.most_at_once, self.seen.at_once)
        try:
            self._act(type(self).manners(number, body), body)
        finally:
            with self.seen.lock:
                self.seen.at_once -= 1

    def _act(self, act: Act, body: dict[str, Any]) -> None:
        time.sleep(act.wait_s)
        data = answer(caption_of(body)) if act.body is None else act.body
        if act.cut >= 0:
            if act.cut:
                self._send(act.status, act.headers, data, act.cut)
            # Linger 0: a reset, not an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        self._send(act.status, act.headers, data)

    def _send(
        self, status: int, headers: dict[str, str], data: bytes, most: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:most])
        self.wfile.flush()
