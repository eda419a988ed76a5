"""Chunked log-probabilities where DeepSpeed spreads the head's weight over the ranks: gathered in both passes."""

import json

import numpy as np
import pytest

from tests.support import accelerate_launch, save_policy

pytestmark = pytest.mark.distributed
ZERO3 = ["--use_deepspeed", "--zero_stage", "3"]


def history(policy, head, processes, flags):
    done = accelerate_launch("tests.distributed.head_run", [policy, head], processes, flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.array(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.parametrize("tied", [False, True])
def test_losses_and_gradient_norms_under_zero3_are_the_naive_ones_of_one_process(tmp_path, tied):
    policy = save_policy(tmp_path, tie_word_embeddings=tied)
    naive = history(policy, "naive", 1, [])
    np.testing.assert_allclose(history(policy, "chunked", 2, ZERO3), naive, atol=1e-4)
    assert abs(naive[0] - naive[2]).min() > 0.01  # it trains
