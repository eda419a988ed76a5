"""The client of reward services, against real sockets that are dead, slow, deaf or talk nonsense."""

import http.client
import json
import shutil
import ssl
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from alignment.reward.sources.build import build_source
from alignment.reward.sources.config import SourceConfig
from alignment.reward.sources.service import ServiceSource, read_answer
from launch import exchange
from launch.errors import UserError
from launch.exchange import Backoff, Endpoint, Notice
from tests.alignment.reward_support import COMPLETIONS, FINISHED, PROMPTS, FakeService, episodes, lengths
from tests.support import free_port, word_tokenizer

LENGTHS = [float(len(text)) for text in COMPLETIONS]
QUICK = Backoff(0, "test", 0.01, 0.05)


def give_up_after(seconds):
    """A beat that ends a wait which would go on for ever: the test fails then, and does not hang."""
    end = time.monotonic() + seconds

    def beat():
        assert time.monotonic() < end, "the service is still waited for"

    return beat


def source_for(url, timeout_s=5.0, **options):
    options = {"backoff": QUICK, "batch_size": 2, "beat": give_up_after(60), **options}
    return ServiceSource("judge", Endpoint(url, timeout_s), word_tokenizer(), **options)


def good(number, request):
    return 200, {"rewards": lengths(request)}


# ---------------------------------------------------------------------------------------------- what is said


def test_the_request_is_that_of_openrlhf_with_our_columns_beside_it():
    rows = [{"reference": "x"}, {"reference": 2}, {}]
    with FakeService(good) as service:
        scores = source_for(service.url, batch_size=3).score(episodes(rows=rows))
    assert scores.total_B.tolist() == LENGTHS and list(scores.components) == ["judge"]
    assert service.requests == [
        {
            "query": ["the ofit for<eos>", "and to inwas on are with", "a is thatas be<eos>"],
            "prompts": PROMPTS,
            "labels": ["x", 2, None],
            "completions": COMPLETIONS,
            "finished": FINISHED,
        }
    ]
    assert service.headers[0]["Content-Type"] == "application/json" and "Authorization" not in service.headers[0]


def test_labels_may_be_another_column_and_messages_are_sent_as_they_are_too():
    message = [{"role": "user", "content": "the"}]
    data = episodes(
        prompts=[message, "of"], completions=["it", "for"], finished=[True, True], rows=[{"a": 1}, {"a": 2}]
    )
    with FakeService(good) as service:
        source_for(service.url, labels="a").score(data)
        with pytest.raises(UserError, match=r"labels: the prompts have no column 'b'"):
            source_for(service.url, labels="b").score(data)
    assert service.requests[0]["labels"] == [1, 2] and service.requests[0]["messages"] == [message, None]
    assert service.requests[0]["prompts"] == ["the", "of"]  # token 3 is what stands for the rendered messages here


def test_batches_come_back_in_order_whatever_their_speed():
    data = episodes(PROMPTS * 20, COMPLETIONS * 20, FINISHED * 20)
    release = threading.Event()

    def answer(number, request):
        if number < 3:
            release.wait(30)
        else:
            release.set()  # the first three are answered after the fourth
        return good(number, request)

    with FakeService(answer) as service:
        assert source_for(service.url, concurrency=4).score(data).total_B.tolist() == LENGTHS * 20
        assert len(service.requests) == 30


@pytest.mark.parametrize(
    "answer",
    [
        lambda r: {"rewards": lengths(r), "scores": [0, 0], "extra_logs": {}},
        lambda r: {"scores": lengths(r)},
        lambda r: lengths(r),
        lambda r: {"rewards": [int(x) for x in lengths(r)], "extra_logs": None, "more": "fields"},
    ],
)
def test_forms_of_an_answer(answer):
    with FakeService(lambda number, request: (200, answer(request))) as service:
        found = source_for(service.url).score(episodes(PROMPTS[:2], COMPLETIONS[:2], FINISHED[:2]))
    assert found.total_B.tolist() == LENGTHS[:2]


def test_what_the_service_logs_is_kept_where_every_answer_has_it():
    def answer(number, request):
        n = len(request["query"])
        logs = {
            "all": [1.0] * n,
            "one": 7,
            "text": ["x"] * n,
            "short": [1] * (n + 1),
            **({"last": 1} if n == 1 else {"first": 1}),
        }
        return 200, {"rewards": lengths(request), "scores": [0.5] * n, "extra_logs": logs}

    with FakeService(answer) as service:
        scores = source_for(service.url).score(episodes())
    assert {k: v.tolist() for k, v in scores.extras.items()} == {
        "judge/scores": [0.5] * 3,
        "judge/all": [1.0] * 3,
        "judge/one": [7.0] * 3,
    }


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, b"<html>hello"), r"the answer is not JSON: b'<html>hello'"),
        ((200, b"[" * 100000), r"the answer is not JSON"),
        ((200, {"reward": [1, 2]}), r"neither 'rewards' nor 'scores', only 'reward'"),
        ((200, "text"), r"neither 'rewards' nor 'scores', 'text'"),
        ((200, {"rewards": [1]}), r"returned 1 values for 2 episodes"),
        ((200, {"rewards": None}), r"returned nothing for 2 episodes"),
        ((200, b'{"rewards": [1, NaN]}'), r"row 2 of the episodes has nan .*\(1 of 2 rows are bad\)"),
        ((200, {"rewards": [1, "2"]}), r"row 2 of the episodes has '2'"),
        ((400, {"error": "row 1 is too long"}), r"answered with status 400 \(row 1 is too long\); mend"),
        ((401, {"error": "no token"}), r"status 401 \(no token\)"),
        ((404, b"Not Found"), r"status 404 \(Not Found\)"),
        ((302, b""), r"status 302 \(no text\)"),  # a redirect is not followed: the token would go with it
    ],
)
def test_what_makes_no_sense_is_an_error_and_no_retry(answer, message):
    with FakeService(lambda number, request: answer) as service:
        with pytest.raises(UserError, match=message) as caught:
            source_for(service.url, concurrency=1).score(episodes(PROMPTS[:2], COMPLETIONS[:2], FINISHED[:2]))
        assert len(service.requests) == 1 and service.url in str(caught.value)


def test_the_first_bad_row_is_counted_over_all_batches():
    def answer(number, request):
        return 200, {"rewards": [1.0 if text != "as be" else float("nan") for text in request["completions"]]}

    with FakeService(answer) as service, pytest.raises(UserError, match=r"row 3 of the episodes has nan"):
        source_for(service.url).score(episodes())


def test_labels_that_json_lacks():
    with FakeService(good) as service, pytest.raises(UserError, match="cannot be sent as JSON"):
        source_for(service.url).score(episodes(rows=[{"reference": float("nan")}, {}, {}]))


# ---------------------------------------------------------------------------------------------- a service that is away


@pytest.mark.parametrize("trouble", [(500, {"error": "out of memory"}), (503, b""), (429, b""), "hang up", "break off"])
def test_what_passes_is_tried_again_and_only_that(trouble):
    """Of three requests the second fails twice; the others are sent once."""
    failed = []

    def answer(number, request):
        if request["completions"] == [COMPLETIONS[1]] and len(failed) < 2:
            failed.append(number)
            return trouble
        return good(number, request)

    lines = []
    with FakeService(answer) as service:
        scores = source_for(service.url, batch_size=1, say=lines.append).score(episodes())
    assert scores.total_B.tolist() == LENGTHS and len(service.requests) == 5
    reason = "out of memory" if trouble[0] == 500 else ""
    assert len(lines) == 2 and service.url in lines[0] and "the run waits for it" in lines[0] and reason in lines[0]
    assert "answers again" in lines[1]


def test_a_service_that_is_killed_and_started_again_pauses_the_run_and_nothing_is_lost():
    port, beats, lines = free_port(), [], []
    first = FakeService(good, port)
    source = source_for(first.url, say=lines.append, beat=lambda: beats.append(1))
    assert source.score(episodes()).total_B.tolist() == LENGTHS
    first.close()
    result = {}
    scoring = threading.Thread(target=lambda: result.update(scores=source.score(episodes())), daemon=True)
    before = len(beats)
    scoring.start()
    while len(beats) < before + 2:  # it waits, and says all the while that it lives
        assert scoring.is_alive()
        time.sleep(0.01)
    assert len(lines) == 1 and f"reward judge (http://127.0.0.1:{port}/score) has not answered since 20" in lines[0]
    assert "refused" in lines[0]
    with FakeService(good, port):
        scoring.join(30)
    assert result["scores"].total_B.tolist() == LENGTHS
    assert len(lines) == 2 and "answers again, after" in lines[1]


def test_an_answer_that_takes_too_long_is_asked_for_again():
    def answer(number, request):
        return "stay silent" if number == 0 else good(number, request)

    lines = []
    with FakeService(answer) as service:
        source = source_for(service.url, timeout_s=0.3, batch_size=3, say=lines.append)
        assert source.score(episodes()).total_B.tolist() == LENGTHS
        assert len(service.requests) == 2 and "timed out" in lines[0]


def test_what_beat_raises_ends_the_wait():
    class Stop(BaseException):
        pass

    def beat():
        raise Stop

    with pytest.raises(Stop):
        source_for(f"http://127.0.0.1:{free_port()}/", beat=beat).score(episodes())
    alive = [thread for thread in threading.enumerate() if "work" in thread.name]
    for thread in alive:
        thread.join(10)
    assert not any(thread.is_alive() for thread in alive)  # nobody goes on asking


def test_a_connection_that_is_reset_while_it_is_made_is_made_again(monkeypatch):
    """As a server does that is ending: its socket still listens, and nobody takes the connection."""
    connect, resets = http.client.HTTPConnection.connect, [True]

    def reset_once(connection):
        if resets:
            resets.pop()
            raise ConnectionResetError("reset by peer")
        connect(connection)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", reset_once)
    with FakeService(good) as service:
        assert source_for(service.url, batch_size=3).score(episodes()).total_B.tolist() == LENGTHS
    assert not resets


def test_at_most_one_line_a_minute(monkeypatch):
    clock, lines = [1000.0], []
    monkeypatch.setattr(
        exchange,
        "time",
        SimpleNamespace(monotonic=lambda: clock[0], time=time.time, strftime=time.strftime, localtime=time.localtime),
    )
    notice = Notice("it", lines.append)
    for seconds in range(150):  # two requests fail every second
        clock[0] = 1000.0 + seconds
        notice.away(0, "dead")
        notice.away(1, "dead")
    assert len(lines) == 3
    notice.back(0)
    assert len(lines) == 3  # the other one still waits
    notice.back(1)
    assert len(lines) == 4 and "answers again" in lines[3]
    notice.away(0, "dead")  # within a minute: silent, and so is its end
    notice.back(0)
    assert len(lines) == 4


def test_backoff_doubles_up_to_a_limit_with_jitter_that_the_seed_decides():
    backoff = Backoff(3, "reward-service-judge")
    for attempt in range(40):
        delay, full = backoff.delay_s(attempt, 1, 2), min(30.0, 0.5 * 2**attempt)
        assert full / 2 <= delay <= full
        assert delay == Backoff(3, "reward-service-judge").delay_s(attempt, 1, 2)
    assert len({backoff.delay_s(9, request, rank) for request in range(3) for rank in range(3)}) == 9


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed")
def test_a_certificate_that_nobody_vouches_for_is_an_error_and_no_pause(tmp_path):
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run(["openssl", "req", "-x509", *kind, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with FakeService(good) as service:
        service.server.socket = context.wrap_socket(service.server.socket, server_side=True)
        with pytest.raises(UserError, match=r"its certificate is not to be trusted \(self-signed certificate\)"):
            source_for(service.url.replace("http:", "https:")).score(episodes())


# ---------------------------------------------------------------------------------------------- secrets


def test_the_token_comes_from_the_environment_and_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    lines = []

    def answer(number, request):
        return (500, b"") if number == 0 else (403, {"error": "no"})

    with FakeService(answer) as service:
        config = {"judge": SourceConfig(url=service.url, token_env="JUDGE_TOKEN")}
        source = build_source(config, "cpu", word_tokenizer(), say=lines.append)
        with pytest.raises(UserError) as caught:
            source.score(episodes())
    assert service.headers[0]["Authorization"] == "Bearer s3cret"
    inner = source.sources["judge"][1]
    assert "s3cret" not in f"{caught.value} {lines} {inner.endpoint} {config}"


def test_a_token_that_makes_no_header_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret\nX: y")
    with pytest.raises(UserError, match="JUDGE_TOKEN holds is no token") as caught:
        build_source({"j": SourceConfig(url="http://host/", token_env="JUDGE_TOKEN")}, "cpu", word_tokenizer())
    assert "s3cret" not in str(caught.value)


def test_answers_are_json_that_survives_float32():
    values = [0.1, -1e-30, 3.4e38, 1 / 3]
    answer = json.dumps({"rewards": values}).encode()
    assert torch.equal(read_answer(answer, 4, "s")["rewards"], torch.tensor(values))


def test_an_answer_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(exchange, "MAX_ANSWER_BYTES", 1000)
    endless = FakeService(lambda number, request: (200, b" " * 5000))
    with endless as service, pytest.raises(UserError, match="this is another service"):
        source_for(service.url).score(episodes())
