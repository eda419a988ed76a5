"""The KL controller and the running scale of scores: by hand, against whole-batch statistics, and through a checkpoint."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.ppo.controllers import KLController, RewardNormaliser


def test_kl_controller_goes_on_where_it_stopped():
    whole, halves = KLController(0.1, 6.0), KLController(0.1, 6.0)
    for kl in (9.0, 3.0, 7.0):
        whole.update(kl, 64)
    halves.update(9.0, 64)
    again = KLController(0.5, 6.0)
    again.load_state_dict(json.loads(json.dumps(halves.state_dict())))
    for kl in (3.0, 7.0):
        again.update(kl, 64)
    assert again.coef == whole.coef != 0.1


def test_kl_controller_stands_still_on_target_and_moves_the_right_way():
    for kl, sign in ((6.0, 0), (6.1, 1), (5.9, -1)):
        controller = KLController(0.1, 6.0)
        controller.update(kl, 64)
        assert np.sign(round(controller.coef - 0.1, 12)) == sign


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40),
    cuts=st.lists(st.integers(1, 39), max_size=4),
)
def test_running_moments_are_those_of_all_scores(scores, cuts):
    running = RewardNormaliser()
    for part in np.split(np.array(scores), sorted({c for c in cuts if c < len(scores)})):
        running.update(torch.tensor(part))
    assert running.count == len(scores)
    assert running.mean == pytest.approx(np.mean(scores), abs=1e-9)
    assert running.std == pytest.approx(np.std(scores), abs=1e-9)


def test_small_spread_on_a_large_mean_survives():
    """The textbook sum of squares loses it: 1e9 + {0, 1, 2} in float64 has deviation sqrt(2/3)."""
    running = RewardNormaliser()
    for score in (0.0, 1.0, 2.0):
        running.update(torch.tensor([1e9 + score], dtype=torch.float64))
    assert running.std == pytest.approx((2 / 3) ** 0.5, abs=1e-6)


def test_merging_two_is_seeing_both():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, generator=generator), 3 + torch.randn(9, generator=generator)
    left, right, both = RewardNormaliser(), RewardNormaliser(), RewardNormaliser()
    left.update(a)
    right.update(b)
    left.merge(right)
    both.update(torch.cat([a, b]))
    assert (left.count, left.mean, left.std) == pytest.approx((14, both.mean, both.std))
    left.merge(RewardNormaliser())
    assert left.count == 14
    empty = RewardNormaliser()
    empty.merge(RewardNormaliser())
    assert empty == RewardNormaliser()


def test_normalised_scores_by_hand():
    running = RewardNormaliser()
    running.update(torch.tensor([2.0, 4.0, 6.0, 8.0]))  # mean 5, population deviation sqrt 5
    scores = torch.tensor([5.0, 10.0])
    torch.testing.assert_close(running.normalise(scores, shift_mean=True), torch.tensor([0.0, 5 / 5**0.5]))
    torch.testing.assert_close(running.normalise(scores, shift_mean=False), scores / 5**0.5)


def test_equal_scores_have_no_scale():
    running = RewardNormaliser()
    running.update(torch.full((3,), 0.1))
    assert running.normalise(torch.tensor([0.1, 1.1]), shift_mean=False).tolist() == pytest.approx([0.1, 1.1])


def test_state_comes_back_to_the_bit():
    running = RewardNormaliser()
    running.update(torch.tensor([0.1, 0.7, -3.3]))
    again = RewardNormaliser()
    again.load_state_dict(json.loads(json.dumps(running.state_dict())))
    assert again == running
