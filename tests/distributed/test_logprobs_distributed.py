"""Chunked log-probabilities where DeepSpeed spreads the head's weight over the ranks: gathered in both passes."""

import json

import numpy as np
import pytest

from tests.forked import run_whole
from tests.support import save_policy

pytestmark = pytest.mark.distributed


def history(policy, head, world, zero_stage):
    job = run_whole([policy, head], policy / "logs", world, zero_stage, module="tests.distributed.head_run:main")
    return np.array(json.loads(job.say().strip().splitlines()[-1]))


@pytest.mark.parametrize("tied", [False, True])
def test_losses_and_gradient_norms_under_zero3_are_the_naive_ones_of_one_process(tmp_path, tied):
    policy = save_policy(tmp_path, tie_word_embeddings=tied)
    naive = history(policy, "naive", 1, 0)
    np.testing.assert_allclose(history(policy, "chunked", 2, 3), naive, atol=1e-4)
    assert abs(naive[0] - naive[2]).min() > 0.01  # it trains
