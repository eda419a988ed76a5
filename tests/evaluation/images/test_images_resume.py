"""`evaluate images` that is killed (SIGKILL) while it takes features goes on, and ends with the same files."""

import functools

import numpy as np
import pytest

from evaluation.images.features import BLOCK
from tests.evaluation.images.killed import die_writing
from tests.evaluation.resumed import check_same
from tests.forked import ForkedJob

EXTRACTOR = """
import os, pathlib, torch
log = pathlib.Path(__file__).with_suffix(".log")

def features(images):
    with open(log, "a") as stream:
        stream.write(f"{len(images)}\\n")
    x = images.double().flatten(1) / 255
    return x @ torch.sin(torch.arange(x.shape[1] * 5).double()).reshape(-1, 5)
"""


@pytest.fixture
def run(tmp_path):
    """Runs the suite; the exit codes, what was said, and of how many images features were computed."""
    images = np.random.default_rng(0).integers(0, 256, (2 * BLOCK + 40, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=images)
    np.savez(tmp_path / "made.npz", images=images[::-1] // 2)
    (tmp_path / "extractor.py").write_text(EXTRACTOR)
    words = ["--generators.made", tmp_path / "made.npz", "--reference", tmp_path / "real.npz", "--baselines", "false"]
    words += ["--extractor", "function", "--function", f"{tmp_path / 'extractor.py'}:features"]

    def run(out, world=1, hook=None):
        log = tmp_path / "extractor.log"
        log.unlink(missing_ok=True)
        job = ForkedJob(
            [*words, "--output_dir", out], tmp_path / "logs", world, hook=hook, module="evaluation.suites.images"
        )
        codes = job.wait(200)
        return codes, "".join(map(job.say, range(world))), sum(map(int, log.read_text().split()))

    return run


@pytest.mark.distributed
def test_two_processes_that_lose_one_are_finished_by_one(run, tmp_path):
    """The reference has three blocks, the set too: ranks 0 and 1 take two of the first; then rank 1 dies in the second set."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    codes, said, computed = run(whole)
    assert codes == [0] and computed == 2 * (2 * BLOCK + 40), said
    codes, said, _ = run(out, 2, functools.partial(die_writing, rank=1, blocks=1))
    assert codes[1] == -9 and codes[0] != 0 and not (out / "made" / "results.json").exists(), said
    blocks = len(list((out / "scored").glob("*.safetensors")))
    assert 3 <= blocks <= 5, said
    codes, said, again = run(out)
    assert codes == [0] and f"the features of {computed - again} images were there before" in said, said
    assert computed - again >= 2 * BLOCK + 40
    check_same(out / "made", whole / "made")
    assert (out / "made" / "grid.png").read_bytes() == (whole / "made" / "grid.png").read_bytes()
    assert not (out / "scored").exists() and not (whole / "scored").exists()
