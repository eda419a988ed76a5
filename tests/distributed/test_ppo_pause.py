"""A service of rewards that is away for longer than anything may take: two real processes wait for it together."""

import signal
import time

import pytest

from launch.files import sha256_file
from tests.distributed.test_ppo_distributed import words
from tests.forked import ForkedJob, run_forked
from tests.services import FakeService
from tests.support import read_metrics

pytestmark = pytest.mark.distributed
UPDATES = 4
LIMIT_S = 9.0
"""Of the watchdog, and of every collective call."""


@pytest.fixture
def service():
    service = FakeService()
    yield service
    service.close()


def command(inputs, out, service, **changes):
    settings = {
        "updates": UPDATES,
        "reward": "null",
        "critic_from": "policy",
        "rewards.judge.url": service.url,
        "watchdog_minutes": LIMIT_S / 60,
    }
    return words(inputs, out, **{**settings, **changes})


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    root, service = tmp_path_factory.mktemp("undisturbed"), FakeService()
    job = run_forked(command(inputs, root / "out", service), root / "logs", world=2)
    service.close()
    assert [rank.exitcode for rank in job.ranks] == [0, 0], job.say()
    return root / "out"


def same_result(out, undisturbed):
    assert sha256_file(out / "model.safetensors") == sha256_file(undisturbed / "model.safetensors")
    assert read_metrics(out) == read_metrics(undisturbed)


def test_no_rank_times_out_or_looks_dead_while_one_waits(inputs, undisturbed, service, tmp_path):
    """In update 3 one rank is answered, and the other not for longer than the watchdog and the process group allow."""
    service.away = lambda answered: answered >= 5
    job = ForkedJob(command(inputs, tmp_path / "out", service), tmp_path / "logs", world=2)
    assert job.wait_for(lambda: service.refused > 0), job.say()
    time.sleep(LIMIT_S + 1)
    assert all(rank.is_alive() for rank in job.ranks)
    assert service.refused > 1
    service.away = lambda answered: False
    assert job.wait() == [0, 0], job.say()
    assert "has not answered since" in job.say(0) + job.say(1)
    assert "answers again" in job.say(0) + job.say(1)
    same_result(tmp_path / "out", undisturbed)


@pytest.mark.parametrize("told", [0, 1])
def test_a_stop_during_the_pause_saves_and_ends_all_ranks(inputs, undisturbed, service, tmp_path, told):
    """The update that waits is lost; there is no checkpoint yet, so the one of the last update is made."""
    service.away = lambda answered: answered >= 5
    out = tmp_path / "out"
    job = ForkedJob(command(inputs, out, service), tmp_path / "logs", world=2)
    assert job.wait_for(lambda: service.refused > 0), job.say()
    assert not list((out / "checkpoints").glob("step-*"))
    job.signal(signal.SIGTERM, told)
    assert job.wait(60) == [75, 75], job.say()
    assert "stopped after step 2 as asked" in job.say()
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-00000002"]
    service.away = lambda answered: False
    again = run_forked(command(inputs, out, service), tmp_path / "logs", world=2)
    assert "resuming after step 2" in again.say()
    same_result(out, undisturbed)


def test_a_stop_before_anything_is_saved(inputs, service, tmp_path):
    service.away = lambda answered: True
    job = ForkedJob(command(inputs, tmp_path / "out", service), tmp_path / "logs")
    assert job.wait_for(lambda: service.refused > 1), job.say()
    job.signal(signal.SIGTERM, 0)
    assert job.wait(60) == [75], job.say()
    assert not list((tmp_path / "out" / "checkpoints").glob("step-*"))


def test_what_one_rank_is_told_ends_both_with_the_sentence(inputs, service, tmp_path):
    service.answer = lambda number, rewards: {"rewards": rewards[1:] if number == 3 else rewards}
    job = ForkedJob(command(inputs, tmp_path / "out", service), tmp_path / "logs", world=2)
    assert job.wait(60) == [2, 2], job.say()
    for rank in (0, 1):
        assert "returned 4 values for 5 episodes" in job.say(rank), job.say(rank)
        assert "Traceback" not in job.say(rank)


def test_rewards_asked_for_early_and_rollouts_ahead_change_nothing_else(inputs, undisturbed, service, tmp_path):
    run = run_forked(command(inputs, tmp_path / "out", service, overlap_scoring=True), tmp_path / "logs", world=2)
    assert [rank.exitcode for rank in run.ranks] == [0, 0], run.say()
    assert service.answered > 2 * UPDATES
    same_result(tmp_path / "out", undisturbed)
