"""Dumps of PPO runs, and replays of them."""

import shutil

import pytest
import torch

from alignment.ppo.dump import parquet_bytes
from alignment.ppo.replay import read_rows
from alignment.reward.sources.protocol import Scores
from tests.alignment.ppo_support import run_updates, weights

SETTINGS = dict(normalise_scores=True, kl_target=1.0, kl_horizon=50, minibatches=2, updates=3)


class TokenRewards:
    """A source that pays for single tokens too."""

    name = "tokens"

    def score(self, episodes):
        tokens = [torch.tensor([(token % 5) / 7 for token in ids]) for ids in episodes.completion_ids]
        total_B = torch.stack([t.sum() + len(t) / 3 for t in tokens])
        return Scores(total_B, {"tokens": total_B}, tokens, {"tokens/extra": total_B / 9})


@pytest.fixture
def dumped(make, tmp_path, request):
    """(history, weights, folder of rollouts) of a run that has everything that a dump must hold."""

    def run(kind="jsonl", source=None, prepare=lambda trainer: None, **changes):
        trainer = make(source=source, dump_rollouts=kind, output_dir=str(tmp_path / "run"), **{**SETTINGS, **changes})
        prepare(trainer)
        return run_updates(trainer), weights(trainer), tmp_path / "run" / "rollouts"

    return run


COMMON = []


@pytest.fixture
def common_dump(make, tmp_path_factory, tmp_path):
    """A copy of one dump that is made once."""
    if not COMMON:
        out = tmp_path_factory.mktemp("dump")
        run_updates(make(dump_rollouts="jsonl", output_dir=str(out)))
        COMMON.append(out / "rollouts")
    return shutil.copytree(COMMON[0], tmp_path / "rollouts")


@pytest.fixture
def both_dumps(common_dump):
    """both_dumps(kind) -> that folder, its files as jsonl or as parquet."""

    def convert(kind):
        for path in common_dump.iterdir() if kind == "parquet" else ():
            path.with_suffix(".parquet").write_bytes(parquet_bytes(read_rows(path)))
            path.unlink()
        return common_dump

    return convert


def replay(make, folder, **changes):
    return make(replay=str(folder), **{**SETTINGS, **changes})


def listen(trainer):
    """What a replay tells the user from here on."""
    said = []
    trainer.replay.say = said.append
    return said
