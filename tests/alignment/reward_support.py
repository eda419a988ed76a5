"""Episodes to score, and a reward service: a real socket, and a script of what it answers."""

import contextlib
import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from alignment.reward.sources.protocol import Episodes
from tests.support import word_tokenizer

PROMPTS = ["the of", "and to in", "a is that"]
COMPLETIONS = ["it for", "was on are with", "as be"]
FINISHED = [True, False, True]


def episodes(prompts=PROMPTS, completions=COMPLETIONS, finished=FINISHED, rows=None):
    tokenizer = word_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in completions]
    return Episodes.decode(
        tokenizer,
        [
            {"prompt": p, "prompt_ids": tokenizer(p)["input_ids"] if isinstance(p, str) else [3], **row}
            for p, row in zip(prompts, rows or [{}] * len(prompts), strict=True)
        ],
        [[*i, tokenizer.eos_token_id] if end else i for i, end in zip(ids, finished, strict=True)],
    )


class FakeService:
    """Answers each POST with `answer(number, request) -> (status, body)`; keeps the requests and their headers.

    A body may be bytes, or anything that JSON holds. `answer` may return "hang up" to reset the connection, "break off"
    to close it in the middle of an answer, or "stay silent" to hold it until the service is closed.
    """

    def __init__(self, answer, port=0):
        self.answer, self.requests, self.headers = answer, [], []
        self._closing, self._lock = threading.Event(), threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with service._lock:
                    number = len(service.requests)
                    service.requests.append(request)
                    service.headers.append(dict(self.headers))
                reply = service.answer(number, request)
                if reply == "hang up":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    return
                if reply == "stay silent":
                    service._closing.wait(60)
                    return
                if reply == "break off":
                    self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n[1.0, 2")
                    return
                status, body = reply
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    if status in (301, 302):
                        self.send_header("Location", "http://127.0.0.1:1/")
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args):
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/score"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self):
        self._closing.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def lengths(request):
    """The reward of this service: how many characters a completion has."""
    return [float(len(text)) for text in request["completions"]]
