"""A stand-in for an OpenAI-compatible server that judges: the address, fields and statuses of the real one."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def shown(request: dict) -> tuple[str, str, str]:
    """Prompt and both answers, as the question shows them."""
    text = request["messages"][-1]["content"]
    marker = re.search(r"^--- (\w+) ---$", text, re.MULTILINE).group(0)
    return tuple(re.findall(f"{re.escape(marker)}\n(.*?)\n{re.escape(marker)}", text, re.DOTALL))


def longer(prompt: str, first: str, second: str) -> str:
    """A judge that likes the longer answer, and says so."""
    verdict = "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"
    return f"Length decides.\n{verdict}"


class JudgeServer:
    """`reply(prompt, first, second)` is what it says; `trouble(number)` a (status, body, seconds) for the request of this
    number, from 0, in place of an answer."""

    def __init__(self, reply=longer, trouble=lambda number: None, finish="stop", token=None, raw=None):
        self.reply, self.trouble, self.finish, self.token, self.raw = reply, trouble, finish, token, raw
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.asked = self.busiest = self._busy = 0
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, body, headers = service.handle(self.path, request, dict(self.headers))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle(self, path, request, headers):
        with self._lock:
            number, self.asked = self.asked, self.asked + 1
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        try:
            return self._answer(number, path, request, headers)
        finally:
            with self._lock:
                self._busy -= 1

    def _answer(self, number, path, request, headers):
        if path != "/v1/chat/completions":
            return 404, b'{"error": {"message": "no such path"}}', {}
        if self.token is not None and headers.get("Authorization") != f"Bearer {self.token}":
            said = f"Incorrect API key provided: {headers.get('Authorization', '')}"
            return 401, json.dumps({"error": {"message": said}}).encode(), {}
        if trouble := self.trouble(number):
            status, body, seconds = trouble
            time.sleep(seconds)
            return status, body, {"Location": self.url + "/elsewhere"} if status in (301, 302, 307) else {}
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
        if self.raw is not None:
            return 200, self.raw, {}
        message = {"role": "assistant", "content": self.reply(*shown(request))}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": self.finish}]}
        return 200, json.dumps(answer).encode(), {}

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.server.shutdown()
        self.server.server_close()
