"""The benchmark of the image metrics: the ways that it times give one number."""

import pytest

from benchmarks.evaluation_images import COMPARISONS, compare_frechet, compare_kernel, describe


@pytest.mark.parametrize(("count", "decay"), [(200, 0.5), (30, 0.5), (200, 2.0)])
def test_all_ways_to_the_distance_give_one_number(count, decay):
    found = compare_frechet(count, 40, decay)
    values = [found[name]["value"] for name in ("ours", "ours_from_features", "numpy_eigvals", "scipy_sqrtm")]
    assert values == pytest.approx([values[0]] * 4, rel=1e-4 if count < 40 else 1e-6) and values[0] > 0.01


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_comparison_runs_and_is_described(name):
    result = COMPARISONS[name](True)
    assert str(result["samples"]) in describe(name, result)


def test_all_pairs_are_one_subset_of_all():
    kernel = compare_kernel(40, 8)
    assert kernel["all_pairs"]["value"] == pytest.approx(kernel["hundred_subsets"]["value"], rel=1e-6)
