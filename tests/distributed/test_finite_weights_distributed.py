"""A weight that is not finite on one rank alone keeps all ranks from writing a checkpoint, however weights are split."""

import functools
import os

import pytest

from tests.forked import run_forked


def build_in(folder, _marks):
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
def test_no_rank_writes_what_is_broken_on_one(tmp_path, stage):
    built = tmp_path / "built"
    more = {"module": "tests.distributed.broken_rank:main", "hook": functools.partial(build_in, built)}
    job = run_forked([tmp_path / "saved"], tmp_path / "logs", 2, stage, **more)
    assert 0 not in job.codes
    for rank in range(2):
        assert "made weights that are not finite (weight), and nothing was written" in job.say(rank)
    assert [path.name for path in (tmp_path / "saved").glob("step-*")] == ["step-00000001"]
    assert not built.exists(), "DeepSpeed compiled an operator: minutes at the first start"
