"""Derived randomness: equal for equal purposes, independent of everything else."""

import numpy as np
import torch

from launch.seeding import derive_seed, numpy_generator, permutation, torch_generator, uniforms


def test_streams_are_reproducible_and_apart():
    keys = [(s, p, c) for s in (0, 1) for p in ("a", "b") for c in range(50)]
    assert len({derive_seed(s, p, c) for s, p, c in keys}) == len(keys)
    assert torch.equal(
        torch.rand(3, generator=torch_generator(0, "x", 1)), torch.rand(3, generator=torch_generator(0, "x", 1))
    )
    assert not np.array_equal(numpy_generator(0, "x", 1).random(3), numpy_generator(0, "x", 2).random(3))


def test_known_value_never_changes():
    # A release that changed this would break the resume of every run made before it.
    assert derive_seed(0, "ppo-rollout", 3) == 2863299686607723818


def test_rows_of_uniforms_belong_to_their_sample():
    whole = uniforms(0, "r", 4, [10, 11, 12], 5)
    assert np.array_equal(uniforms(0, "r", 4, [12, 10], 5), whole[[2, 0]])
    assert np.array_equal(uniforms(0, "r", 4, [11], 3)[0], whole[1, :3])
    assert whole.min() >= 0 and whole.max() < 1
    many = uniforms(0, "r", 4, list(range(2000)), 20)
    assert abs(many.mean() - 0.5) < 4 * (1 / 12) ** 0.5 / 200


def test_permutation_is_one():
    assert sorted(permutation(100, 3, "p", 1).tolist()) == list(range(100))
    assert not np.array_equal(permutation(100, 3, "p", 1), permutation(100, 3, "p", 2))
