"""A weight that is not finite on one rank alone keeps all ranks from writing a checkpoint, however weights are split."""

import pytest

from tests.support import accelerate_launch


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
def test_no_rank_writes_what_is_broken_on_one(tmp_path, stage):
    flags = ["--use_deepspeed", "--zero_stage", str(stage)]
    built = str(tmp_path / "built")
    words = [str(tmp_path / "saved")]
    result = accelerate_launch("tests.distributed.broken_rank", words, 2, flags, TORCH_EXTENSIONS_DIR=built)
    assert result.returncode != 0
    assert result.stderr.count("made weights that are not finite (weight), and nothing was written") == 2
    assert [path.name for path in (tmp_path / "saved").glob("step-*")] == ["step-00000001"]
    assert not (tmp_path / "built").exists(), "DeepSpeed compiled an operator: minutes at the first start"
