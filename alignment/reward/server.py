"""The HTTP server of `alignkit reward serve`; what it answers is said in serve.py."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from alignment.reward.batcher import Batcher, Busy
from alignment.reward.model import RewardModel
from alignment.reward.request import BadRequest, read_request
from alignment.reward.serve import ServeConfig
from launch.errors import UserError

PATHS = ("/", "/score", "/get_reward")
SILENCE_S = 60.0  # a client that sends nothing for so long is cut off
GRACE_S = 20.0  # for answers under way, when the service is asked to end
MOST_DISCARDED = 64 * 2**20  # bytes of a refused request that are read, so that its sender gets to read the answer
LINGER_S = 2.0  # how long to wait for them


class RewardServer(ThreadingHTTPServer):
    """Listens as soon as it is made; `serve_forever` answers, `drain` ends it."""

    request_queue_size = 128

    def __init__(self, config: ServeConfig, model: RewardModel, token: str = "") -> None:
        self.config, self.token, self.name = config, token, Path(config.model).name
        self.address_family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        try:
            super().__init__((config.host, config.port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port: cannot listen on {config.host}:{config.port} ({getattr(error, 'strerror', None) or error}); "
                "choose another --port or --host"
            ) from None
        self.batcher = Batcher(model, config.batch_tokens, config.max_waiting)
        tokenizer = model.tokenizer
        self.ends = [t for t in (tokenizer.eos_token, tokenizer.pad_token) if t]
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.starts = [t for t in (tokenizer.pad_token, tokenizer.bos_token if adds_bos else None) if t]
        self.ending = False
        self._active, self._lock = 0, threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is a bug of ours, with its traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.server_address[1]}"

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around a request, so that `drain` waits for its answer."""
        with self._lock:
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1

    def drain(self) -> None:
        """Stop listening, answer what has been asked, and end."""
        self.ending = True
        self.shutdown()
        self.server_close()
        deadline = time.monotonic() + GRACE_S
        while self._active and time.monotonic() < deadline:
            time.sleep(0.05)
        self.batcher.close()


class Handler(BaseHTTPRequestHandler):
    """One connection, which may bring several requests."""

    server: RewardServer
    protocol_version = "HTTP/1.1"
    server_version = "alignkit"
    sys_version = ""
    timeout = SILENCE_S
    unread = 0
    """Bytes of the present request that are still to come."""

    def do_GET(self) -> None:
        if self._path() == "/health":
            self._answer(200, {"status": "ok", "model": self.server.name})
        elif self._path() in PATHS:
            self._fail(405, "this address takes POST requests")
        else:
            self._fail(404, f"nothing is here; POST to one of {', '.join(PATHS)}, or GET /health")

    def do_POST(self) -> None:
        sized = self._expect_body()
        with self.server.answering():
            if self._path() not in PATHS:
                self._fail(404, f"nothing is here; POST to one of {', '.join(PATHS)}, or GET /health")
            elif not self._may_ask():
                self._fail(401, "the token is missing or wrong; send the header `Authorization: Bearer TOKEN`")
            elif not sized:
                self._fail(411, "the header Content-Length is missing; send the body in one piece")
            elif self.server.ending:
                self._fail(503, "the service is ending; ask again when it is back")
            elif (content := self._read()) is not None:
                self._score(content)

    def _expect_body(self) -> bool:
        """Whether the request says how long its body is; `unread` is set to that, or to the most there may be."""
        length = self.headers.get("Content-Length", "")
        sized = length.isascii() and length.isdecimal() and len(length) < 16
        self.unread = int(length) if sized else MOST_DISCARDED * ("Transfer-Encoding" in self.headers)
        return sized

    def _score(self, content: bytes) -> None:
        server = self.server
        try:
            asked = read_request(content, server.config.max_rows, server.ends, server.starts)
            rewards = server.batcher.score(asked.prompts, asked.completions, asked.finished)
        except (BadRequest, UserError) as error:
            self._fail(400, str(error))
        except Busy:
            self._fail(503, f"more than {server.config.max_waiting} rows would wait; ask again later")
        except Exception as error:
            self._fail(500, f"the model failed ({type(error).__name__}: {error}); the service's own output says more")
        else:
            self._answer(200, {"rewards": rewards, "scores": rewards, "extra_logs": {}})

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _may_ask(self) -> bool:
        token, given = self.server.token, self.headers.get("Authorization", "")
        return not token or hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    def _read(self) -> bytes | None:
        """The body of the request; None after answering that there is too much of it."""
        size, most = self.unread, self.server.config.max_request_mib * 2**20
        if size > most:
            self._fail(413, f"{size} bytes in one request, more than {most}; send smaller batches")
            return None
        content, self.unread = self.rfile.read(size), 0
        if len(content) < size:
            self._fail(400, f"the body broke off after {len(content)} of {size} bytes")
            return None
        return content

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        with contextlib.suppress(OSError):  # the client has gone
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

    def _fail(self, status: int, sentence: str) -> None:
        """Answer with an error, and close: what is left of the request's body would be taken for the next request.

        The body is read before that: a connection closed with unread bytes is reset, and its answer may be lost.
        """
        self.close_connection = True
        self._answer(status, {"error": sentence})
        remaining = min(self.unread, MOST_DISCARDED)
        self.connection.settimeout(LINGER_S)
        with contextlib.suppress(OSError):
            while remaining > 0 and (part := self.rfile.read1(min(remaining, 2**16))):
                remaining -= len(part)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request, in our form."""
        if code == 501:  # a method that we have not: it came with headers, and perhaps a body
            self._expect_body()
        self._fail(405 if code == 501 else int(code), message or "this is no HTTP request that this service knows")

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: their texts may be private, and there are thousands."""


def serve(config: ServeConfig, token: str = "") -> None:
    """Serve until SIGTERM or SIGINT, then finish what was asked and return."""
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = RewardModel.from_pretrained(config.model, dtype=dtype, field="model")
    server = RewardServer(config, model, token)
    wake, asked = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(asked, b"."))
    threading.Thread(target=server.serve_forever, name="listener", daemon=True).start()
    print(f"alignkit reward serve: {server.url} serves {config.model} on {model.device}", flush=True)
    os.read(wake, 1)
    print("alignkit reward serve: ending as asked", flush=True)
    server.drain()
