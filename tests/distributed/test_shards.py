"""DeepSpeed's shards are pickles; a checkpoint whose hashes fit may still come from somebody else: nothing in it is executed."""

import json
import os
import pickle

import pytest
import torch

from launch.checkpoint import MANIFEST, seal_folder, verify_folder
from launch.errors import UserError
from launch.shards import guard_deepspeed, read_shard
from tests.distributed.test_ppo_distributed import words
from tests.forked import run_forked

pytestmark = pytest.mark.distributed


class Bomb:
    """A pickle of this runs a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def poison(shard, mark):
    guard_deepspeed()  # written as a rank writes it
    state = torch.load(shard, weights_only=False)
    torch.save({**state, "extra": Bomb(mark)}, shard)


def reseal(folder):
    """The manifest that fits what lies there now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    seal_folder(folder, {key: manifest[key] for key in manifest if key not in ("sha256", "schema", "files")})


@pytest.mark.parametrize(("stage", "precision", "shard"), [(2, "bf16", "optim"), (3, "fp32", "model")])
def test_a_shard_that_would_run_a_program_is_refused(inputs, tmp_path, stage, precision, shard):
    out, mark = tmp_path / "out", tmp_path / "executed"
    command = words(inputs, out, checkpoint_steps=1, updates=1, precision=precision)
    first = run_forked(command, tmp_path / "logs", 1, stage)
    assert [rank.exitcode for rank in first.ranks] == [0], first.say()
    (out / "provenance.json").unlink()
    good = out / "checkpoints" / "step-00000001"
    poisoned = next(good.rglob(f"*{shard}_states.pt"))
    poison(poisoned, mark)
    reseal(good)
    verify_folder(good)
    refused = run_forked(command, tmp_path / "logs", 1, stage)
    assert [rank.exitcode for rank in refused.ranks] == [2], refused.say()
    assert f"{poisoned}: this shard holds more than tensors (it names `posix.system`)" in refused.say()
    assert "Traceback" not in refused.say() and not mark.exists()


def test_a_shard_of_plain_values_and_tensors_is_read(tmp_path):
    state = {"weights": torch.arange(3.0), "step": 4, "names": ["a"], "none": None}
    torch.save(state, tmp_path / "shard.pt")
    assert str(read_shard(str(tmp_path / "shard.pt"))) == str(state)
    (tmp_path / "shard.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "executed"), protocol=2))
    with pytest.raises(UserError, match=r"shard\.pt: this shard holds more than tensors"):
        read_shard(str(tmp_path / "shard.pt"))
    assert not (tmp_path / "executed").exists()


def test_an_enum_is_written_as_every_python_reads_it(tmp_path, monkeypatch):
    """Python 3.11.2, which is Debian's, makes it a call of `getattr`: every resume under ZeRO was refused there."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    by_name = lambda stage, _: (getattr, (ZeroStageEnum, stage.name))  # noqa: E731
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", by_name)
    guard_deepspeed()
    torch.save({"zero_stage": ZeroStageEnum.gradients}, tmp_path / "shard.pt")
    assert read_shard(str(tmp_path / "shard.pt"))["zero_stage"] is ZeroStageEnum.gradients
