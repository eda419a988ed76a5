"""Thirty kills of PPO jobs, in every phase of an update and at every step of a save: nothing acknowledged is lost.

Jobs of one process are killed several times and resumed each time; those of two lose one rank, or both. In the end the
weights and all metrics are those of a run that nobody killed, to the bit. `python -m benchmarks.soak` does it more often.
"""

import random

import pytest

from tests.distributed.test_ppo_distributed import words
from tests.kills import PHASES, Kill, finish, result_of, strike

pytestmark = pytest.mark.distributed
UPDATES = 6
AHEAD = {"rollouts_ahead": 1, "dump_rollouts": "jsonl", "normalise_scores": True, "kl_target": 1.0, "kl_horizon": 100}
AHEAD |= {"critic_from": "trunk"}


def command(inputs, out, **changes):
    settings = {"updates": UPDATES, "checkpoint_steps": 1, "epochs": 1, "watchdog_minutes": 2}
    return words(inputs, out, **{**settings, **changes})


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """whole(world, zero_stage, changes) -> the folder of a run that nobody kills."""
    made = {}

    def run(world, zero_stage, changes):
        key = (world, zero_stage, *changes)
        if key not in made:
            root = tmp_path_factory.mktemp("whole")
            finish(command(inputs, root / "out", **changes), root / "out", root / "logs", world, zero_stage)
            made[key] = root / "out"
        return made[key]

    return run


def plan_kills(seed, count, world):
    """`count` kills in ascending order; the moment within a long phase is random, as is the rank."""
    rng = random.Random(seed)
    kills = []
    for update in sorted(rng.sample(range(1, UPDATES + 1), count)):
        phase = rng.choice(PHASES)
        delay = rng.uniform(0.0, 0.05) if phase in ("rollout", "score", "update") else 0.0
        # What happens on the main rank alone can be hit there alone.
        rank = 0 if phase in PHASES[PHASES.index("seal") :] else rng.randrange(world)
        kills.append(Kill(update, phase, delay, rank, all_ranks=rng.random() < 0.5))
    return kills


JOBS = [(seed, 4, 1, 0, {} if seed % 2 else AHEAD) for seed in range(6)]
JOBS += [(6, 2, 2, 0, AHEAD), (7, 2, 2, 2, AHEAD), (8, 1, 2, 1, {}), (9, 1, 2, 3, {})]
assert sum(count for _, count, *_ in JOBS) == 30


@pytest.mark.parametrize(("seed", "count", "world", "zero_stage", "changes"), JOBS)
def test_killed_again_and_again(inputs, whole, tmp_path, seed, count, world, zero_stage, changes):
    out, logs = tmp_path / "out", tmp_path / "logs"
    call = command(inputs, out, **changes)
    reached = 0
    for kill in plan_kills(seed, count, world):
        blow = strike(call, out, logs, kill, world, zero_stage)
        assert blow is not None, kill
        assert blow.kept >= blow.acknowledged >= reached, (kill, blow)
        reached = blow.kept
    assert not (out / "provenance.json").exists()
    assert finish(call, out, logs, world, zero_stage) == reached
    expected = whole(world, zero_stage, changes)
    assert result_of(out) == result_of(expected)
    dumps = [{p.name: p.read_bytes() for p in folder.glob("rollouts/*")} for folder in (out, expected)]
    assert dumps[0] == dumps[1] and len(dumps[0]) == (UPDATES if changes else 0)
