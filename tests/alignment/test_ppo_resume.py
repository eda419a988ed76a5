"""Resume of PPO in one process: every step boundary of a run, every bit of a checkpoint."""

import random

import pytest
import torch

from launch.checkpoint import Checkpoint, CheckpointStore, verify_folder
from launch.errors import UserError
from launch.files import sha256_file
from tests.alignment.ppo_support import run_updates, stable, weights

UPDATES = 30
MOVING = {
    "updates": UPDATES,
    "epochs": 1,
    "kl_target": 1.0,
    "kl_horizon": 100,
    "normalise_scores": True,
    "critic_warmup": 3,
    "batch_size": 6,
    "learning_rate": 3e-3,
}
"""Everything that moves from one update to the next."""


class Enough(Exception):
    pass


def files_of(folder):
    """Hashes of what a checkpoint holds; the manifest, which has them too, tells of the time and the place."""
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "MANIFEST.json"}


@pytest.mark.parametrize(("ahead", "updates"), [(0, 8), (1, UPDATES)])
def test_every_step_boundary_of_a_run(make, runtime, tmp_path, ahead, updates):
    """From each of its checkpoints a fresh trainer makes the next update: its checkpoint is the same to the last byte.

    Without rollouts ahead a checkpoint holds less, and nothing that it does not hold with them: 8 are enough there.
    """
    settings = {**MOVING, "rollouts_ahead": ahead, "updates": updates}
    store, history = CheckpointStore(tmp_path / "whole", runtime, keep=updates), []
    whole = make(**settings)
    whole.sink = lambda number, metrics: (history.append(stable(metrics)), whole.save(store))
    whole.train()
    assert store.steps() == list(range(1, updates + 1))
    for step in range(1, updates):
        fresh, mine = make(**settings), CheckpointStore(tmp_path / "fresh", runtime)

        def stop(number, metrics, fresh=fresh, mine=mine, step=step):
            assert (number, stable(metrics)) == (step + 1, history[step])
            fresh.save(mine)
            raise Enough

        fresh.sink = stop
        folder = store.folder / f"step-{step:08d}"
        fresh.load(Checkpoint(step, folder, verify_folder(folder)))
        with pytest.raises(Enough):
            fresh.train()
        name = f"step-{step + 1:08d}"
        assert files_of(tmp_path / "fresh" / name) == files_of(tmp_path / "whole" / name), step


def test_what_the_next_update_depends_on_is_in_the_checkpoint(make, runtime, tmp_path):
    trainer, store = make(**MOVING, rollouts_ahead=1), CheckpointStore(tmp_path, runtime)
    trainer.sink = lambda number, metrics: number == 5 and trainer.save(store) and (_ for _ in ()).throw(Enough)
    with pytest.raises(Enough):
        trainer.train()
    state = store.latest().state()
    extra = state["extra"]
    assert extra["update_number"] == 5 and extra["kl"]["coef"] != trainer.config.kl_coef
    assert extra["normaliser"]["count"] == 5 * 6
    assert extra["ahead"]["lengths"].sum() == len(extra["ahead"]["tokens"]) == len(extra["ahead"]["logprobs"])
    engine = state["engines"]["engine"]
    assert {name.split(".")[0] for name in engine["module"]} == {"policy", "critic"}
    assert len(engine["optimizer"]["state"]) == len(list(trainer.engine.module.parameters()))


def test_a_thousand_flipped_bits_are_all_found(make, runtime, tmp_path, capsys):
    trainer, store = make(rollouts_ahead=1, updates=2), CheckpointStore(tmp_path, runtime)
    trainer.sink = lambda number, metrics: trainer.save(store)
    trainer.train()
    rng, newest = random.Random(0), tmp_path / "step-00000002"
    files = sorted(newest.iterdir())
    hit = set()
    for _ in range(1000):
        path = rng.choice(files)  # of each kind as many: the tensors' file is far larger than the others
        position, bit = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        with open(path, "r+b") as stream:
            stream.seek(position)
            good = stream.read(1)
            stream.seek(position)
            stream.write(bytes([good[0] ^ bit]))
            stream.flush()
            found = CheckpointStore(tmp_path, runtime).latest()
            stream.seek(position)
            stream.write(good)
        assert found.step == 1, (path.name, position, bit)
        assert "step-00000002" in capsys.readouterr().err
        hit.add(path.name)
    assert hit == {"MANIFEST.json", "state.json", "state.safetensors"}
    assert CheckpointStore(tmp_path, runtime).latest().step == 2


def test_resume_after_a_torn_checkpoint_goes_on_from_the_one_before(make, runtime, tmp_path, capsys):
    whole, store = make(updates=4), CheckpointStore(tmp_path, runtime, keep=4)
    history = []
    whole.sink = lambda number, metrics: (history.append(stable(metrics)), whole.save(store))
    whole.train()
    with open(tmp_path / "step-00000004" / "state.safetensors", "r+b") as stream:
        stream.truncate(100)
    (tmp_path / "step-00000003" / "state.json").unlink()
    resumed = make(updates=4)
    resumed.load(CheckpointStore(tmp_path, runtime).latest())
    said = capsys.readouterr().err
    assert "step-00000004: state.safetensors has 100 bytes instead of" in said
    assert "step-00000003: state.json is missing" in said
    assert run_updates(resumed) == history[2:]
    assert torch.equal(weights(resumed), weights(whole))
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}" / "MANIFEST.json").unlink()
    with pytest.raises(UserError, match="no checkpoint is intact"):
        CheckpointStore(tmp_path, runtime).latest()
