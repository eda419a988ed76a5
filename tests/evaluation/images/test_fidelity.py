"""Agreement with torch-fidelity, on the same features and on the same weights."""

import dataclasses

import numpy as np
import pytest
import torch_fidelity
from torch.utils.data import Dataset

from data.images import image_set
from evaluation.images.extractors.inception import prepare_inception
from evaluation.images.features import FeatureSource
from evaluation.images.fidelity import fidelity_fid, fidelity_isc, fidelity_kid, fidelity_prc
from evaluation.images.frechet import frechet_distance_from_features
from evaluation.images.kernel import kernel_distance
from evaluation.images.manifold import precision_recall_density_coverage
from evaluation.images.score import inception_score


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("n", "dimensions"), [(150, 24), (40, 60)])  # more and fewer samples than dimensions
def test_same_numbers_from_the_same_features(n, dimensions):
    mixing = rng(5).standard_normal((dimensions, dimensions))
    x, y = rng(1).standard_normal((n, dimensions)) @ mixing + 0.5, rng(2).standard_normal((n, dimensions)) @ mixing
    logits = rng(3).standard_normal((n, 7)) * 3
    assert frechet_distance_from_features(x, y) == pytest.approx(fidelity_fid(x, y), rel=1e-6)
    assert kernel_distance(x, y).value == pytest.approx(fidelity_kid(x, y), rel=1e-9)
    assert inception_score(logits, 3).mean() == pytest.approx(fidelity_isc(logits, 3), rel=1e-9)
    found = precision_recall_density_coverage(x, y)
    assert (found.precision.mean(), found.recall.mean()) == pytest.approx(fidelity_prc(x, y), rel=1e-6)


def test_torch_fidelity_goes_below_zero_where_we_do_not():
    features = rng(3).standard_normal((64, 96))
    assert fidelity_fid(features, features) < 0 <= frechet_distance_from_features(features, features) < 1e-9


class Pictures(Dataset):
    """What torch-fidelity reads: uint8 (3, H, W) tensors."""

    def __init__(self, images):
        import torch

        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.mark.slow
def test_same_numbers_from_the_same_weights_end_to_end(random_inception, ranks):
    coarse = rng().integers(0, 256, (10, 3, 4, 4), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    real = image_set(coarse, None, "real")
    noise = rng(1).normal(0, 40, coarse.shape)
    fake = dataclasses.replace(real, images=np.clip(coarse + noise, 0, 255).astype(np.uint8))
    extractor = prepare_inception(str(random_inception))
    assert extractor.score_name("fd").startswith("fd_inception_")  # these weights do not define FID
    source = FeatureSource(extractor, ranks)
    ours = [source.of(images) for images in (fake, real)]
    assert ours[0].features.shape == (10, 2048) and ours[0].logits.shape == (10, 1008)
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(fake.images),
        input2=Pictures(real.images),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(random_inception),
        cuda=False,
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        isc_splits=2,
        kid_subsets=1,
        kid_subset_size=10,
        samples_shuffle=False,
        save_cpu_ram=True,
        verbose=False,
    )
    generated, reference = (f.features for f in ours)
    manifold = precision_recall_density_coverage(generated, reference)
    distance = frechet_distance_from_features(generated, reference)
    assert distance > 1 and distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert inception_score(ours[0].logits, 2).mean() == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    kernel = kernel_distance(generated, reference).value
    assert kernel == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)  # theirs is computed in float32
    assert kernel == pytest.approx(fidelity_kid(generated, reference), rel=1e-9)
    assert manifold.precision.mean() == pytest.approx(theirs["precision"], rel=1e-6)
    assert manifold.recall.mean() == pytest.approx(theirs["recall"], rel=1e-6)
    one_by_one = [source.of(real.take(np.array([index]))).features for index in range(3)]
    assert np.allclose(np.concatenate(one_by_one), reference[:3], rtol=1e-4, atol=1e-5)  # float32, batches of 1 and 10
