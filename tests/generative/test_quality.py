"""Short runs of each kind make digits: close to real ones, of all classes, far better than untrained models or noise.

The judges are of the tests alone: the nearest real digit, and a logistic regression on real digits.
"""

import functools

import numpy as np
import pytest
from scipy.spatial import cKDTree
from sklearn.linear_model import LogisticRegression

from data.embedded import digits
from generative.sampling import sample_images
from generative.train import TrainConfig
from generative.train.stage import build_learner
from generative.training import Trainer
from launch.config import build
from launch.runtime import start_runtime

SHORT = {
    "vae": {"steps": 250},
    "gan": {"steps": 200},
    "diffusion": {"steps": 120},
}
COUNT = 300


@functools.cache
def judges():
    images, labels = digits()
    flat = images.reshape(-1, 64) / 255
    return cKDTree(flat), LogisticRegression(max_iter=200).fit(flat, labels)


def distance_to_real(images):
    """Mean distance of an image (grey in 0..1, 64 pixels) to the nearest real digit."""
    return judges()[0].query(images.reshape(-1, 64) / 255)[0].mean()


def classes(images):
    """Mean probability of the chosen class, and the share of each class."""
    probabilities = judges()[1].predict_proba(images.reshape(-1, 64) / 255)
    return probabilities.max(1).mean(), np.bincount(probabilities.argmax(1), minlength=10) / len(images)


def test_the_judges_know_noise_from_digits():
    tree, _ = judges()
    real = digits()[0]
    assert tree.query(real.reshape(-1, 64) / 255, k=2)[0][:, 1].mean() == pytest.approx(1.03, abs=0.02)
    assert distance_to_real(np.random.default_rng(0).integers(0, 256, (COUNT, 64))) > 3
    confidence, shares = classes(real)
    assert confidence > 0.9 and shares.min() > 0.09


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHORT)
def test_samples_are_digits(kind):
    config = build(TrainConfig, {"kind": kind, **SHORT[kind]}, "test")
    runtime = start_runtime("fp32")
    dials = config.dials
    learner = build_learner(config, 8, 1, runtime)
    trainer = Trainer(learner, digits()[0][:, None], dials.steps, dials.batch_size, config.ema_decay, 0, runtime)
    options = {"steps": 20} if kind == "diffusion" else {}
    untrained = sample_images(learner.model, range(COUNT), 0, **options)
    while trainer.step < trainer.steps:
        trainer.update()
    with trainer.finished() as model:
        made = sample_images(model, range(COUNT), 0, **options)
    # real digits are 1.03 from the nearest other one, independent pixels with the right margins 2.2, noise 3.6
    assert distance_to_real(untrained) > 3.2
    assert distance_to_real(made) < 1.7
    assert len(np.unique(made.reshape(COUNT, -1), axis=0)) == COUNT
    confidence, shares = classes(made)
    assert confidence > 0.58 and shares.min() > 0.02 and shares.max() < 0.25
