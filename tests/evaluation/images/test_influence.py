"""The influence function of the Fréchet distance: by derivative, by the jackknife, and where covariances are singular."""

import numpy as np
import pytest

from evaluation.images.frechet import frechet_distance, frechet_distance_from_features
from evaluation.images.influence import frechet_influence
from launch.errors import UserError
from launch.seeding import numpy_generator


def sets(n, m, d, shift=0.4):
    g = numpy_generator(9, f"influence {n} {m} {d}")
    return g.standard_normal((n, d)) * np.linspace(0.5, 2, d) + shift, g.standard_normal((m, d))


@pytest.mark.parametrize(("n", "m", "d"), [(60, 40, 5), (9, 40, 20), (30, 12, 20), (8, 9, 20)])
def test_value_is_the_distance(n, m, d):
    x, y = sets(n, m, d)
    assert frechet_influence(x, y).value == pytest.approx(frechet_distance_from_features(x, y), rel=1e-10)
    assert frechet_influence(x, y).first.shape == (n,) and frechet_influence(x, y).second.shape == (m,)


def moved(first, second, image, e=1e-5):
    """The derivative of the distance towards one image of the first set."""
    n = len(first)
    weights = np.full(n, (1 - e) / n)
    weights[image] += e
    mean = weights @ first
    centred = (first - mean) * np.sqrt(weights)[:, None]
    covariances = centred.T @ centred * n / (n - 1), np.cov(second, rowvar=False)
    heavier = frechet_distance(mean, covariances[0], second.mean(0), covariances[1])
    return (heavier - frechet_distance_from_features(first, second)) / e


@pytest.mark.parametrize("image", [0, 7, 31])
@pytest.mark.parametrize(
    "decay", [0.0, 2.0, 5.0]
)  # at 5 singular values give the distance: squares have lost half of them
def test_influence_is_the_derivative_towards_one_image(image, decay):
    x, y = (z * 10.0 ** -np.linspace(0, decay, 8) for z in sets(60, 70, 8))
    for first, second, side in ((x, y, "first"), (y, x, "second")):
        found = getattr(frechet_influence(x, y), side)
        assert found[image] == pytest.approx(moved(first, second, image), rel=2e-3, abs=1e-3 * found.std())


def test_its_variance_is_the_jackknife_s():
    x, y = sets(300, 400, 6)
    left_out = [frechet_distance_from_features(np.delete(x, i, 0), y) for i in range(300)]
    assert frechet_influence(x, y).variance[0] == pytest.approx(299 * np.var(left_out), rel=0.03)


def test_rotation_does_not_matter_and_sides_change_places():
    x, y = sets(50, 70, 5)
    q = np.linalg.qr(numpy_generator(0, "rotation").standard_normal((5, 5)))[0]
    found, turned, swapped = frechet_influence(x, y), frechet_influence(x @ q, y @ q), frechet_influence(y, x)
    assert turned.first == pytest.approx(found.first, abs=1e-9) and swapped.second == pytest.approx(
        found.first, abs=1e-9
    )


def test_constant_images_and_constant_dimensions():
    still = frechet_influence(np.zeros((5, 3)), np.ones((4, 3)))
    assert still.value == pytest.approx(3.0) and not still.first.any() and not still.second.any()
    x, y = sets(60, 70, 4)
    padded = frechet_influence(*(np.hstack([z, np.zeros((len(z), 2))]) for z in (x, y)))
    assert padded.first == pytest.approx(frechet_influence(x, y).first, abs=1e-8)


def test_copies_among_few_images():
    x, y = sets(12, 15, 20)
    x[3], y[4:7] = x[1], y[8]
    found, turned = frechet_influence(x, y), frechet_influence(y, x)
    assert found.value == pytest.approx(frechet_distance_from_features(x, y), rel=1e-10)
    assert found.first[3] == pytest.approx(found.first[1]) and found.second[4] == pytest.approx(found.second[8])
    assert turned.second == pytest.approx(found.first, abs=1e-6) and np.isfinite(found.second).all()


def test_bad_input_is_named():
    x, y = sets(5, 6, 3)
    with pytest.raises(UserError, match="3 and 2 dimensions"):
        frechet_influence(x, y[:, :2])
    with pytest.raises(UserError, match=r"the first set has 1 images; .* at least two"):
        frechet_influence(x[:1], y)
