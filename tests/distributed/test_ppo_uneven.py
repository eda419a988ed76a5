"""Sources of reward that give one rank other things than the other: what is common is kept, and nobody waits for ever."""

import pytest

from tests.distributed.test_ppo_distributed import words
from tests.forked import run_whole
from tests.services import FakeService
from tests.support import read_metrics

pytestmark = pytest.mark.distributed

FUNCTION = """
import os

def sevens(completion_ids, **columns):
    if os.environ.get("RANK") != "1":
        return [float(ids.count(7)) for ids in completion_ids]
    return [[float(token == 7) for token in ids] for ids in completion_ids]
"""


def toxicity_of_every_other_answer(number, rewards):
    """What is logged besides is a number in one answer, and none in the next: of two ranks one has the column."""
    toxicity = [0.5 if number % 2 else None] * len(rewards)
    return {"rewards": rewards, "extra_logs": {"fluency": 1.0, "toxicity": toxicity}}


def test_ranks_that_are_given_other_columns_and_kinds_of_reward_go_on_together(inputs, tmp_path):
    (tmp_path / "reward.py").write_text(FUNCTION)
    service = FakeService(answer=toxicity_of_every_other_answer)
    settings = {
        "updates": 2,
        "reward": "null",
        "critic_from": "policy",
        "missing_eos": "none",
        "rewards.sevens.function": f"{tmp_path / 'reward.py'}:sevens",
        "rewards.judge.url": service.url,
        "watchdog_minutes": 0.3,
    }
    for world in (1, 2):
        run_whole(words(inputs, tmp_path / f"out{world}", **settings), tmp_path / f"logs{world}", world)
    service.close()
    alone, together = (read_metrics(tmp_path / f"out{world}") for world in (1, 2))
    assert "reward/judge/toxicity" not in together[0] and together[0]["reward/judge/fluency"] == 1
    assert together[0]["reward/sevens"] > 0
    for name in ("reward/sevens", "reward/judge", "reward/score", "reward/total"):
        assert together[0][name] == pytest.approx(alone[0][name], abs=1e-5), name
