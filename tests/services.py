"""A reward service that tests can send away."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeService:
    """Pays for the length of a completion. `away(number)` says of each request, counted from 0, that it is refused."""

    def __init__(self, away=lambda number: False, answer=None):
        self.away, self.answer = away, answer
        self.asked = self.refused = self.answered = 0
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, body = service.handle(request)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle(self, request):
        with self._lock:
            number, self.asked = self.asked, self.asked + 1
            if self.away(self.answered):
                self.refused += 1
                return 503, b"away"
            self.answered += 1
        rewards = [len(text) / 10 - 1 for text in request["completions"]]
        return 200, json.dumps(self.answer(number, rewards) if self.answer else {"rewards": rewards}).encode()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
