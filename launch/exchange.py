"""Requests to a service that may be away: it is waited for, and nothing that it has answered is asked again.

Reward services, rollout servers and judges are asked through this. What passes (no connection, no answer in time, status
408, 429 or 5xx) is tried again, for ever unless `attempts` says how often, with exponential back-off and jitter; what stays
(any other status, an answer that makes no sense) is a UserError at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from launch.errors import UserError
from launch.seeding import numpy_generator

T = TypeVar("T")
Beat = Callable[[], object]
"""Called while something works, at least once a second while it waits for a service; what it raises ends the work."""
Say = Callable[[str], object]
"""Takes one line for the user."""
BEAT_S = 0.5
QUIET_S = 60.0
MAX_ANSWER_BYTES = 64 * 2**20
PASSING = (408, 429)  # too slow, too many requests: the service is there, and will take the request later


class Away(Exception):
    """The service does not answer now; it may later."""


class Failing(Away):
    """The service answers, with a status that may pass."""


class Refused(UserError):
    """The service answered with a status that stays."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """Where requests go. The token is sent as `Authorization: Bearer TOKEN`, and shown nowhere."""

    url: str
    timeout_s: float = 60.0
    token: str = field(default="", repr=False)

    def at(self, path: str) -> Endpoint:
        """The same service at a path below this address."""
        return dataclasses.replace(self, url=self.url.rstrip("/") + path)

    def get(self) -> bytes:
        """As `post`, for a question without a body."""
        return self._answer("GET", None)

    def post(self, body: bytes) -> bytes:
        """The body of the answer. Away for what passes, UserError for what stays. Redirects are not followed.

        `timeout_s` is for connecting, for each silence of the service, and for the whole answer once it has begun.
        """
        return self._answer("POST", body)

    def _answer(self, method: str, body: bytes | None) -> bytes:
        try:
            status, content = self._exchange(method, body)
        except ssl.SSLCertVerificationError as error:
            raise UserError(f"{self.url}: its certificate is not to be trusted ({error.verify_message})") from None
        except (OSError, http.client.HTTPException) as error:
            raise Away(str(error) or type(error).__name__) from None
        if 200 <= status < 300:
            return content
        if status in PASSING or status >= 500:
            raise Failing(f"status {status}: {_excerpt(content, self.token)}")
        sentence = (
            f"{self.url}: answered with status {status} ({_excerpt(content, self.token)}); mend the request or the url"
        )
        raise Refused(sentence, status)

    def _exchange(self, method: str, body: bytes | None) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.connect()  # by itself: a connection that is reset while it is made has no answer to read
            # A request that is refused before it is read through breaks the pipe: the answer says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, body, headers)
            response = connection.getresponse()
            return response.status, self._read(response)
        finally:
            connection.close()

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        content, deadline = bytearray(), time.monotonic() + self.timeout_s
        while part := response.read1(2**16):
            content += part
            if len(content) > MAX_ANSWER_BYTES:
                raise UserError(
                    f"{self.url}: answers with more than {MAX_ANSWER_BYTES >> 20} MiB; this is another service"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"the answer took more than {self.timeout_s:g} s")
        if response.length:  # read1 does not tell that the connection broke
            raise http.client.IncompleteRead(bytes(content), response.length)
        return bytes(content)


def _excerpt(content: bytes, secret: str) -> str:
    """The sentence in an answer that tells of an error, or its beginning; without the secret, which some repeat."""
    text = content.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    text = " ".join(text.split())
    text = text.replace(secret, "***") if secret else text
    return (text[:197] + "..." if len(text) > 200 else text) or "no text"


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a request is sent again: about `first_s`, doubled each time, at most `longest_s`."""

    seed: int
    purpose: str
    first_s: float = 0.5
    longest_s: float = 30.0

    def delay_s(self, attempt: int, *counters: int) -> float:
        """Between half and all of min(longest_s, first_s * 2^attempt); the counters tell requests and ranks apart."""
        share = 0.5 + 0.5 * float(numpy_generator(self.seed, self.purpose, attempt, *counters).random())
        return share * min(self.longest_s, self.first_s * 2 ** min(attempt, 30))


class Notice:
    """Says that the run waits for a service: at most one line in QUIET_S seconds, and one when it is back."""

    def __init__(self, what: str, say: Say) -> None:
        self.what, self.say = what, say
        self._lock = threading.Lock()
        self._waiting: set[int] = set()
        self._since = self._said = -float("inf")
        self._told = False

    def away(self, request: int, reason: str) -> None:
        with self._lock:
            if not self._waiting:
                self._since, self._told = time.time(), False
            self._waiting.add(request)
            if time.monotonic() - self._said < QUIET_S:
                return
            self._said, self._told = time.monotonic(), True
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._since))
            self.say(f"{self.what} has not answered since {since} ({reason}); the run waits for it")

    def back(self, request: int) -> None:
        with self._lock:
            was_waiting = request in self._waiting
            self._waiting.discard(request)
            if was_waiting and not self._waiting and self._told:
                self.say(f"{self.what} answers again, after {time.time() - self._since:.0f} s; the run goes on")


@dataclass
class Exchange(Generic[T]):
    """A batch of requests, `concurrency` at a time, each repeated until it is answered."""

    ask: Callable[[int, int], T]
    """`ask(i, attempt)` sends request i and says what the answer means: Away for what passes, UserError for what stays."""
    backoff: Backoff
    notice: Notice
    counters: tuple[int, ...] = ()
    attempts: int | None = None
    """How often a request is sent until the service counts as gone, which is a UserError; None for ever."""

    def run(self, count: int, concurrency: int, beat: Beat) -> list[T]:
        """The answers to `count` requests, in order. `beat` is called while this waits, and its exceptions end it."""
        answers = dict(self.stream(count, concurrency, beat))
        return [answers[number] for number in range(count)]

    def stream(self, count: int, concurrency: int, beat: Beat) -> Iterator[tuple[int, T]]:
        """As `run`, each answer with its number as soon as it comes; before a failure is raised, all that came before."""
        pending: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(count):
            pending.put(number)
        came: queue.SimpleQueue[tuple[int, T] | BaseException] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                while not stop.is_set():
                    number = pending.get_nowait()
                    came.put((number, self._until_answered(number, stop)))
            except queue.Empty:
                pass
            except BaseException as error:
                came.put(error)

        # Daemons: one that waits for a dead service must not hold up the end of the process.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, count))]
        failure, left, due = None, count, 0.0
        try:
            for thread in threads:
                thread.start()
            while left and not (failure and came.empty()):
                if time.monotonic() >= due:
                    beat()
                    due = time.monotonic() + BEAT_S
                try:
                    item = came.get(timeout=BEAT_S)
                except queue.Empty:
                    continue
                if isinstance(item, BaseException):
                    failure = failure or item
                    stop.set()
                else:
                    left -= 1
                    yield item
        finally:
            stop.set()
        if failure:
            raise failure

    def _until_answered(self, number: int, stop: threading.Event) -> T:
        attempt = 0
        while True:
            try:
                answer = self.ask(number, attempt)
            except Away as reason:
                self.notice.away(number, str(reason))
                if attempt + 1 == self.attempts:
                    raise UserError(
                        f"{self.notice.what} was asked {self.attempts} times and did not answer ({reason}); what it answered "
                        "before is kept, so run the same command again when it is back"
                    ) from None
                if stop.wait(self.backoff.delay_s(attempt, number, *self.counters)):
                    raise  # nobody waits for this answer any more
                attempt += 1
            else:
                self.notice.back(number)
                return answer
