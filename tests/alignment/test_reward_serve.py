"""`alignkit reward serve`: what it serves is what the model gives here; bad requests get a sentence; it ends in order."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForSequenceClassification

from alignment.reward import batcher as batching
from alignment.reward.batcher import Batcher, Busy
from alignment.reward.model import RewardModel
from alignment.reward.request import BadRequest, read_request
from alignment.reward.serve import ServeConfig, is_own_address
from alignment.reward.server import Handler, RewardServer
from alignment.reward.sources.service import ServiceSource
from data import train_tokenizer
from launch.cli import run_command
from launch.config import load_config
from launch.errors import UserError
from launch.exchange import Backoff, Endpoint
from tests.alignment.reward_support import COMPLETIONS, FINISHED, PROMPTS, episodes
from tests.commands import ForkedCommand
from tests.support import environment, free_port, tiny_config, word_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model with a byte tokenizer and a chat template; its texts need no spaces to be told apart."""
    folder = tmp_path_factory.mktemp("served") / "judge"
    tokenizer = train_tokenizer(["the of and to in a is that"] * 3, 300)
    torch.manual_seed(4)
    config = tiny_config(len(tokenizer), num_labels=1, initializer_range=0.3, max_position_embeddings=128)
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(folder):
    return RewardModel.from_pretrained(folder)


class Running:
    """A server in this process."""

    def __init__(self, folder, judge, token="", **config):
        self.server = RewardServer(ServeConfig(model=str(folder), port=0, **config), judge, token)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = self.server.url

    def close(self):
        self.server.drain()
        self.thread.join()


@pytest.fixture(scope="module")
def server(folder, judge):
    running = Running(folder, judge, max_rows=50, max_request_mib=1)
    yield running
    running.close()


def ask(url, content, path="/", headers=None, method=None):
    """(status, JSON) of a request."""
    body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
    request = urllib.request.Request(url + path, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


# ---------------------------------------------------------------------------------------------- served == local


def test_query_and_prompts_give_what_the_model_gives_here(server, judge):
    query = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    for path in ("/", "/score", "/get_reward"):
        status, answer = ask(server.url, {"query": query, "prompts": PROMPTS, "labels": [None] * 3}, path)
        assert status == 200
        assert answer["rewards"] == pytest.approx(judge.score(PROMPTS, COMPLETIONS), abs=1e-6)
        assert answer["scores"] == answer["rewards"] and answer["extra_logs"] == {}


def test_the_border_between_prompt_and_completion_matters(judge):
    """The tokenizer merges across it: one text is not the same as two."""
    texts = ["the o", "f and"]
    whole, split = judge.encode(["".join(texts)], [""]), judge.encode([texts[0]], [texts[1]])
    assert whole != split and judge.tokenizer.decode(whole[0]) == judge.tokenizer.decode(split[0])


def test_query_alone_is_one_text(server, judge):
    status, answer = ask(server.url, {"query": ["the of and", "to"]})
    assert status == 200 and answer["rewards"] == pytest.approx(judge.score(["the of and", "to"], ["", ""]), abs=1e-6)


@pytest.mark.parametrize("messages", [False, True])
def test_the_client_gets_what_the_model_gives_here(server, judge, messages):
    """Over the client: another tokenizer than the policy's, completions that were cut off, prompts of messages."""
    prompts = [[{"role": "user", "content": "the"}], "of and", "to"] if messages else PROMPTS
    data = episodes(prompts * 5, COMPLETIONS * 5, FINISHED * 5)
    source = ServiceSource("judge", Endpoint(server.url), word_tokenizer(), Backoff(0, "t"), batch_size=4)
    expected = judge.score(prompts * 5, COMPLETIONS * 5, ended=FINISHED * 5)
    assert source.score(data).total_B.tolist() == pytest.approx(expected, abs=1e-6)


def test_bf16_weights_give_nearly_the_same(folder, judge):
    half = RewardModel.from_pretrained(folder, dtype=torch.bfloat16)
    running = Running(folder, half, precision="bf16")
    query = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    _, answer = ask(running.url, {"query": query, "prompts": PROMPTS})
    running.close()
    assert answer["rewards"] == pytest.approx(judge.score(PROMPTS, COMPLETIONS), abs=0.2)
    assert answer["rewards"] != pytest.approx(judge.score(PROMPTS, COMPLETIONS), abs=1e-6)


def test_requests_that_come_together_share_a_pass(judge, monkeypatch):
    passes, started, release = [], threading.Event(), threading.Event()

    def slow(model, ids, batch_tokens):
        passes.append(len(ids))
        started.set()
        release.wait(30)
        return score_ids(model, ids, batch_tokens)

    score_ids = batching.score_ids
    monkeypatch.setattr(batching, "score_ids", slow)
    batcher, results = Batcher(judge), {}

    def one(text):
        results[text] = batcher.score([text], ["it"], [True])[0]

    texts = ["the", "of", "and", "to", "in"]
    threads = [threading.Thread(target=one, args=(text,)) for text in texts]
    threads[0].start()
    started.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(batcher._waiting) < 4:
        time.sleep(0.01)
    release.set()
    for thread in threads:
        thread.join(30)
    batcher.close()
    assert passes == [1, 4]
    assert [results[text] for text in texts] == pytest.approx(judge.score(texts, ["it"] * 5), abs=1e-6)


def test_a_request_that_does_not_fit_fails_alone_and_a_full_queue_says_so(judge, monkeypatch):
    started, release = threading.Event(), threading.Event()
    score_ids = batching.score_ids

    def slow(*arguments):
        started.set()
        release.wait(30)
        return score_ids(*arguments)

    monkeypatch.setattr(batching, "score_ids", slow)
    batcher, results = Batcher(judge, most_waiting=3), {}

    def run(name, prompts):
        try:
            results[name] = batcher.score(prompts, ["it"] * len(prompts), [True] * len(prompts))
        except (UserError, Busy) as error:
            results[name] = error

    def start(name, prompts):
        thread = threading.Thread(target=run, args=(name, prompts))
        thread.start()
        return thread

    threads = [start("first", ["the"])]
    started.wait(30)
    threads += [start("good", ["of"]), start("long", ["of", "the " * 200])]
    while len(batcher._waiting) < 2:
        time.sleep(0.01)
    run("too many", ["and"])
    release.set()
    for thread in threads:
        thread.join(30)
    assert isinstance(results["too many"], Busy)
    assert "row 2 has" in str(results["long"])
    assert results["good"] == pytest.approx(judge.score(["of"], ["it"]), abs=1e-6)
    batcher.close()
    with pytest.raises(Busy):
        batcher.score(["a"], ["b"], [True])


def test_a_model_that_fails_is_a_fault_of_the_service(folder, judge, monkeypatch, capsys):
    def broken(*arguments):
        raise UserError("gives NaN or infinity")

    monkeypatch.setattr(batching, "score_ids", broken)
    running = Running(folder, judge)
    status, answer = ask(running.url, {"query": ["the"]})
    running.close()
    assert status == 500 and "gives NaN or infinity" in answer["error"]
    assert "Traceback" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- requests


def test_special_tokens_that_engines_leave_in_a_query_are_cut_off():
    def read(query, prompt=None):
        asked = {"query": [query]} if prompt is None else {"query": [query], "prompts": [prompt]}
        found = read_request(json.dumps(asked).encode(), 10, ["<eos>", "<pad>"], ["<pad>", "<s>"])
        return found.prompts[0], found.completions[0]

    assert read("a b<eos>", "a") == ("a", " b")
    assert read("<pad><pad><s>a b<eos><pad>", "a") == ("a", " b")
    assert read("<s>a b<eos>", "<s>a") == ("<s>a", " b")  # it is in the prompt, too
    assert read("seo b so>", "seo") == ("seo", " b so>")  # whole tokens only, no set of characters
    assert read("<pad>a b<eos><eos>") == ("a b", "")
    assert read("c a b<eos>", "a") == ("c a b", "")  # not its prompt: read as one text
    assert read("a b", "") == ("a b", "")


def test_finished_goes_with_its_row():
    content = {"prompts": ["a", "b"], "completions": ["x", "y"], "finished": [True, False], "query": ["-"] * 2}
    found = read_request(json.dumps(content).encode(), 10)
    assert (found.prompts, found.completions, found.finished) == (["a", "b"], ["x", "y"], [True, False])


MESSAGES = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the request is not JSON"),
        (b"\xff\xfe", "the request is not JSON"),
        (b"[" * 100000, "the request is not JSON"),
        ([1], "no JSON object"),
        ({}, "'query' is missing"),
        ({"query": None}, "'query' is missing"),
        ({"query": "text"}, "'query' is no list"),
        ({"query": [1]}, "'query': row 1 is not text"),
        ({"query": ["a"] * 11}, "11 rows in one request, more than 10"),
        ({"query": ["a", "b"], "prompts": ["a"]}, "'prompts' has 1 values for 2 rows"),
        ({"query": ["a"], "prompts": [None]}, "'prompts': row 1 is not text"),
        ({"query": ["a"], "finished": [1]}, "'finished': row 1 is not true or false"),
        ({"completions": ["a"]}, "'prompts' is missing beside 'completions'"),
        ({"completions": ["a"], "messages": [MESSAGES, MESSAGES]}, "'messages' is no list of 1 rows"),
        ({"completions": ["a"], "messages": [None]}, "'messages': row 1"),
        ({"completions": ["a"], "messages": [[{"role": "user"}]]}, "'messages': row 1"),
    ],
)
def test_bad_requests_get_a_sentence(content, message):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(BadRequest, match=message):
        read_request(body, 10)


@pytest.mark.parametrize(
    ("content", "path", "method", "status", "message"),
    [
        (b"{", "/", None, 400, "not JSON"),
        ({"query": ["a"] * 51}, "/", None, 400, "51 rows in one request, more than 50"),
        ({"query": ["the " * 200]}, "/", None, 400, "more than the model's context of 128"),
        ({"query": ["a"], "prompts": [], "x": 1}, "/", None, 400, "'prompts' has 0 values"),
        ({"query": ["a"]}, "/other", None, 404, "nothing is here"),
        (b" " * (2**20 + 1), "/", None, 413, "more than 1048576"),
        (b" " * (20 * 2**20), "/", None, 413, "more than 1048576"),  # more than the sockets hold
        ({"query": ["a"]}, "/", "PUT", 405, "PUT"),
        (None, "/score", "GET", 405, "takes POST"),
        (None, "/other", "GET", 404, "nothing is here"),
    ],
)
def test_bad_requests_over_http(server, content, path, method, status, message):
    found, answer = ask(server.url, content, path, method=method)
    assert found == status and message in answer["error"]


def test_connections_are_kept_and_health_tells_the_model(server, judge):
    connection = http.client.HTTPConnection(*server.server.server_address, timeout=60)
    for _ in range(3):
        connection.request("POST", "/", json.dumps({"query": ["the"]}))
        first = json.loads(connection.getresponse().read())
    sock = connection.sock
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok", "model": "judge"}
    assert connection.sock is sock and first["rewards"] == pytest.approx(judge.score(["the"], [""]), abs=1e-6)
    connection.close()


def test_a_body_without_length_or_that_breaks_off(server):
    connection = http.client.HTTPConnection(*server.server.server_address, timeout=60)
    connection.request("POST", "/", iter([b"{}"]), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 411 and "Content-Length" in json.loads(response.read())["error"]
    with socket.create_connection(server.server.server_address, timeout=60) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{}")
        raw.shutdown(socket.SHUT_WR)
        assert b" 400 " in raw.makefile("rb").readline()
    with socket.create_connection(server.server.server_address, timeout=60) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}")
        assert b" 411 " in raw.makefile("rb").readline()
    with socket.create_connection(server.server.server_address, timeout=60) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert b'{"error":' in raw.makefile("rb").read()
    assert ask(server.url, None, "/health")[0] == 200  # and it lives


def test_a_token_is_asked_for(folder, judge):
    running = Running(folder, judge, token="s3cret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        status, answer = ask(running.url, {"query": ["a" * 2**19]}, headers=headers)
        assert status == 401 and "Authorization: Bearer" in answer["error"]
    assert ask(running.url, {"query": ["a"]}, headers={"Authorization": "Bearer s3cret"})[0] == 200
    source = ServiceSource("j", Endpoint(running.url, token="s3cret"), word_tokenizer(), Backoff(0, "t"))
    assert len(source.score(episodes()).total_B) == 3
    with pytest.raises(UserError, match=r"status 401 \(the token is missing or wrong"):
        ServiceSource("j", Endpoint(running.url), word_tokenizer(), Backoff(0, "t")).score(episodes())
    running.close()


# ---------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "model is missing; add --model DIR"),
        (
            ["--model", "x", "--host", "0.0.0.0"],
            r"host: 0\.0\.0\.0 can be reached from other machines; add --token_env",
        ),
        (["--model", "x", "--host", "::"], "can be reached from other machines"),
        (["--model", "x", "--host", "judge.example"], "can be reached from other machines"),
        (["--model", "x", "--port", "70000"], "port: 70000 is outside"),
        (["--model", "x", "--max_rows", "0"], "max_rows: 0 is below 1"),
        (["--modle", "x"], "unknown key '--modle'; did you mean 'model'"),
    ],
)
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(UserError, match=message):
        load_config(ServeConfig, words)


def test_open_addresses_need_a_token_or_a_word():
    assert load_config(ServeConfig, ["--model", "x", "--host", "0.0.0.0", "--token-env", "T"]).token_env == "T"
    assert load_config(ServeConfig, ["--model", "x", "--host", "0.0.0.0", "--without_token"]).without_token
    assert [is_own_address(h) for h in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_own_address(h) for h in ("0.0.0.0", "10.0.0.1", "::", "example.org")] == [False] * 4


def test_a_port_that_is_taken(folder, judge):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match=r"port: cannot listen on 127\.0\.0\.1:\d+ \(Address already in use\)"):
            RewardServer(ServeConfig(model=str(folder), port=other.getsockname()[1]), judge)


def start(folder, *words):
    """The command in a process of its own, once it listens; and its address."""
    command = [str(Path(sys.executable).parent / "alignkit"), "reward", "serve", "--model", str(folder), *words]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line, process.stderr.read() if process.poll() else line
    return process, line.split()[3]


@pytest.mark.slow
def test_a_real_service_answers_ends_on_sigterm_and_the_run_goes_on_with_the_next_one(folder, judge):
    port = free_port()
    process, url = start(folder, "--port", str(port))
    second = None
    try:
        assert url == f"http://127.0.0.1:{port}"
        lines, beats = [], []
        source = ServiceSource(
            "judge", Endpoint(url), word_tokenizer(), Backoff(0, "t", 0.05, 0.2),
            beat=lambda: beats.append(1), say=lines.append,
        )  # fmt: skip
        expected = pytest.approx(judge.score(PROMPTS, COMPLETIONS, ended=FINISHED), abs=1e-6)
        assert source.score(episodes()).total_B.tolist() == expected and not lines
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "ending as asked" in out and not err, (out, err)
        result = {}
        waiting = threading.Thread(target=lambda: result.update(scores=source.score(episodes())), daemon=True)
        waiting.start()
        second = ForkedCommand("launch.cli:run_command", ["reward", "serve", "--model", folder, "--port", port], folder)
        waiting.join(60)
        assert result["scores"].total_B.tolist() == expected
        assert "has not answered since" in lines[0] and "answers again" in lines[-1] and beats
        second.send_signal(signal.SIGTERM)
        said = second.communicate(60)
        assert second.returncode == 0 and "ending as asked" in said[0], said
    finally:
        process.kill()
        process.communicate()
        if second is not None:
            second.kill()


def test_requests_under_way_are_answered_before_the_end(folder, judge, monkeypatch):
    started, release, written = threading.Event(), threading.Event(), threading.Event()
    score_ids, answer = batching.score_ids, Handler._answer

    def slow(*arguments):
        started.set()
        release.wait(30)
        return score_ids(*arguments)

    def late(self, status, content):
        time.sleep(0.3)
        answer(self, status, content)
        written.set()

    def end():
        running.close()
        result["written before the end"] = written.is_set()

    monkeypatch.setattr(batching, "score_ids", slow)
    monkeypatch.setattr(Handler, "_answer", late)
    running, result = Running(folder, judge), {}
    asking = threading.Thread(target=lambda: result.update(answer=ask(running.url, {"query": ["the"]})))
    asking.start()
    started.wait(30)
    ending = threading.Thread(target=end)
    ending.start()
    while not running.server.ending:
        time.sleep(0.01)
    release.set()
    asking.join(30)
    ending.join(30)
    assert result["answer"][0] == 200 and result["written before the end"]
    assert result["answer"][1]["rewards"] == pytest.approx(judge.score(["the"], [""]), abs=1e-6)


def test_the_front_door(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    run_command(["reward", "serve", "--help"])
    assert "--token_env" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"model: .*nowhere: no such folder"):
        run_command(["reward", "serve", "--model", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="NO_SUCH_TOKEN is not set"):
        run_command(["reward", "serve", "--model", str(tmp_path), "--token-env", "NO_SUCH_TOKEN"])
