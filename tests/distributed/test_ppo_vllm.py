"""Real PPO jobs whose rollouts come from a vLLM server (a stand-in, see tests/vllm_server.py): DDP, ZeRO, and its end."""

import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.test_ppo_distributed import words
from tests.forked import ForkedJob, run_forked
from tests.support import free_port, read_metrics, save_policy
from tests.vllm_server import VLLMServer

pytestmark = pytest.mark.distributed
UPDATES, EPISODES = 3, 10
LIMIT_S = 9.0
"""Of the watchdog, and of every collective call."""


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("other") / "model", seed=9)


@pytest.fixture
def server(other):
    with VLLMServer(other) as server:
        yield server


def command(inputs, out, server, **changes):
    settings = {
        "updates": UPDATES,
        "vllm.url": server if isinstance(server, str) else server.url,
        "vllm.weights_folder": out.parent / "weights",
        "watchdog_minutes": LIMIT_S / 60,
    }
    return words(inputs, out, **{**settings, **changes})


@pytest.fixture(scope="module")
def alone(inputs, other, tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    with VLLMServer(other) as server:
        job = run_forked(command(inputs, root / "out", server), root / "logs")
        assert [rank.exitcode for rank in job.ranks] == [0], job.say()
        assert f"rollouts by vLLM 0.33.0 at {server.url} (tiny, 64 tokens)" in job.say()
        assert job.say().count("not repeatable to the bit") == 1
        assert len(server.loaded) == UPDATES and len(server.requests) == UPDATES * EPISODES
    assert not list((root / "weights").iterdir())
    rows = read_metrics(root / "out")
    assert all(row["importance/max"] == pytest.approx(1, abs=1e-3) for row in rows)
    return root / "out"


def same_run(out, alone):
    """The same samples, and so the same run up to rounding."""
    for ours, theirs in zip(read_metrics(out), read_metrics(alone), strict=True):
        assert ours["rollout/length"] == theirs["rollout/length"]
        assert ours["reward/score"] == pytest.approx(theirs["reward/score"], abs=1e-4)
        assert ours["kl/k1"] == pytest.approx(theirs["kl/k1"], abs=1e-4)
    a, b = (load_file(folder / "model.safetensors") for folder in (out, alone))
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in b)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_processes_share_a_server(inputs, alone, server, tmp_path, zero_stage):
    settings = {"watchdog_minutes": 2} if zero_stage else {}
    job = run_forked(command(inputs, tmp_path / "out", server, **settings), tmp_path / "logs", 2, zero_stage)
    assert [rank.exitcode for rank in job.ranks] == [0, 0], job.say() + job.say(1)
    assert len(server.loaded) == UPDATES and len(server.requests) == UPDATES * EPISODES
    same_run(tmp_path / "out", alone)


def test_two_servers_and_rollouts_ahead(inputs, server, other, tmp_path):
    with VLLMServer(other) as second:
        urls = f"{server.url},{second.url}"
        job = run_forked(command(inputs, tmp_path / "out", urls, rollouts_ahead=1), tmp_path / "logs", 2)
        assert [rank.exitcode for rank in job.ranks] == [0, 0], job.say() + job.say(1)
        assert len(server.requests) == len(second.requests) == UPDATES * EPISODES / 2
        assert len(server.loaded) == len(second.loaded) == UPDATES
    rows = read_metrics(tmp_path / "out")
    assert rows[0]["importance/max"] == pytest.approx(1, abs=1e-3) and rows[2]["importance/max"] > 1.001


def test_a_server_that_was_killed_is_waited_for_and_given_the_weights_again(inputs, alone, server, tmp_path):
    """It ends within the second rollout, for longer than watchdog and collectives allow, and comes back with its own model."""
    server.before = lambda number: server.stop() if number == EPISODES + 4 else None
    job = ForkedJob(command(inputs, tmp_path / "out", server), tmp_path / "logs", world=2)
    assert job.wait_for(lambda: server.server is None), job.say()
    time.sleep(LIMIT_S + 1)
    assert all(rank.is_alive() for rank in job.ranks)
    server.start()
    assert job.wait() == [0, 0], job.say() + job.say(1)
    said = job.say(0) + job.say(1)
    assert "has not answered since" in said and "answers again" in said
    assert "was started again, and has the policy's weights again" in said
    assert len(server.loaded) == UPDATES + 1
    same_run(tmp_path / "out", alone)


def test_a_stop_while_it_is_away_and_a_resume(inputs, alone, server, other, tmp_path):
    server.before = lambda number: server.stop() if number == EPISODES + 4 else None
    out = tmp_path / "out"
    job = ForkedJob(command(inputs, out, server), tmp_path / "logs", world=2)
    assert job.wait_for(lambda: server.server is None), job.say()
    job.signal(signal.SIGTERM, 1)
    assert job.wait(60) == [75, 75], job.say() + job.say(1)
    assert "stopped after step 1 as asked" in job.say()
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-00000001"]
    with VLLMServer(other) as fresh:  # elsewhere: addresses do not belong to the run
        again = run_forked(command(inputs, out, fresh), tmp_path / "logs", world=2)
        assert [rank.exitcode for rank in again.ranks] == [0, 0], again.say()
        assert len(fresh.loaded) == UPDATES - 1
    assert "resuming after step 1" in again.say()
    same_run(out, alone)


def test_a_stop_during_rollouts_ahead_is_not_held_up(inputs, server, tmp_path):
    """A checkpoint is made without the responses that are not there; they are sampled anew after the resume."""
    server.before = lambda number: server.stop() if number == 2 * EPISODES - 1 else None
    out = tmp_path / "out"
    settings = {"rollouts_ahead": 1, "checkpoint_steps": 1}
    job = ForkedJob(command(inputs, out, server, **settings), tmp_path / "logs", world=2)
    assert job.wait_for(lambda: "step-00000001" in str(list((out / "checkpoints").glob("step-*")))), job.say()
    assert job.wait_for(lambda: server.server is None), job.say()
    job.signal(signal.SIGTERM, 0)
    assert job.wait(60) == [75, 75], job.say() + job.say(1)
    server.before = lambda number: None
    server.start()
    again = run_forked(command(inputs, out, server, **settings), tmp_path / "logs", world=2)
    assert [rank.exitcode for rank in again.ranks] == [0, 0], again.say()
    assert len(read_metrics(out)) == UPDATES


def test_no_server_at_the_start_is_one_sentence(inputs, tmp_path):
    url = f"http://127.0.0.1:{free_port()}"
    job = ForkedJob(command(inputs, tmp_path / "out", url), tmp_path / "logs", world=2)
    assert job.wait(60) == [2, 2], job.say()
    assert f"vllm.url: {url} does not answer" in job.say() and "Traceback" not in job.say() + job.say(1)


def test_what_one_rank_is_answered_ends_both(inputs, server, tmp_path):
    answered = []
    server.twist = lambda choice: (
        answered.append(choice) or ({**choice, "token_ids": []} if len(answered) == 13 else choice)
    )
    job = ForkedJob(command(inputs, tmp_path / "out", server), tmp_path / "logs", world=2)
    assert job.wait(60) == [2, 2], job.say()
    for rank in (0, 1):
        assert "the completion is empty" in job.say(rank) and "Traceback" not in job.say(rank)
