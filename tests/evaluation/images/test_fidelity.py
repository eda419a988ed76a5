"""The extractors, and agreement with torch-fidelity on the same features."""

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch
import torch_fidelity

from data.images import image_set, load_images
from evaluation.images.extractors import (
    INCEPTION_FILE,
    DigitsClassifier,
    prepare_inception,
    train_digits_classifier,
    weights_hash,
)
from evaluation.images.fidelity import (
    UInt8Images,
    extract_features,
    fidelity_fid,
    fidelity_isc,
    load_extractor,
)
from evaluation.images.frechet import frechet_distance_from_features
from evaluation.images.metrics import inception_score, precision_recall_density_coverage, shuffled
from launch.errors import UserError

CPU = torch.device("cpu")


def noisy(images, level, seed=0):
    draw = np.random.default_rng(seed).normal(0, level, images.images.shape)
    return dataclasses.replace(images, images=np.clip(images.images + draw, 0, 255).astype(np.uint8))


def test_the_digits_extractor_knows_digits(digits_extractor):
    extractor, accuracy = digits_extractor
    assert accuracy > 0.97
    assert extractor.distance_name == "fd_digits" and extractor.score_name == "is_digits"
    assert f"accuracy {accuracy:.3f}" in extractor.description


def test_training_is_deterministic_whatever_ran_before():
    train = load_images("embedded:digits::eval")
    torch.manual_seed(1)
    first = weights_hash(train_digits_classifier(train, epochs=1).state_dict())
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert weights_hash(train_digits_classifier(train, epochs=1).state_dict()) == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert weights_hash(train_digits_classifier(train, seed=1, epochs=1).state_dict()) != first
    with pytest.raises(UserError, match="has no labels"):
        train_digits_classifier(dataclasses.replace(train, labels=None))


def test_features_are_those_of_the_classifier(digits_extractor):
    extractor, _ = digits_extractor
    images = load_images("embedded:digits::eval").sample(70, 0)
    found = extract_features(load_extractor(extractor, CPU), extractor, images, batch=16)
    model = DigitsClassifier()
    model.load_state_dict(safetensors.torch.load_file(extractor.weights))
    features, logits = model.double()(torch.from_numpy(images.images).double() / 255)
    assert found.features.dtype == torch.float64
    assert torch.allclose(found.features, features, atol=1e-12) and torch.allclose(found.logits, logits, atol=1e-12)


def test_the_extractor_refuses_other_sizes(digits_extractor):
    extractor, _ = digits_extractor
    large = image_set(np.zeros((4, 1, 28, 28), np.uint8), None, "x")
    with pytest.raises(UserError, match="28x28, the digits extractor takes 8x8"):
        extract_features(load_extractor(extractor, CPU), extractor, large)


def test_agrees_with_torch_fidelity_end_to_end(digits_extractor):
    extractor, _ = digits_extractor
    real = load_images("embedded:digits").sample(400, 0)
    fake = noisy(real.sample(300, 1), 40)
    module = load_extractor(extractor, CPU)
    ours = [extract_features(module, extractor, s) for s in (fake, real)]
    order = shuffled(300, 0)
    theirs = torch_fidelity.calculate_metrics(
        input1=UInt8Images(fake.images[order]),
        input2=UInt8Images(real.images),
        feature_extractor=extractor.registered,
        feature_extractor_weights_path=str(extractor.weights),
        cuda=False,
        fid=True,
        isc=True,
        prc=True,
        isc_splits=3,
        samples_shuffle=False,
        save_cpu_ram=True,
        verbose=False,
    )
    distance = frechet_distance_from_features(ours[0].features, ours[1].features)
    score = inception_score(ours[0].logits[order], 3).mean()
    manifold = precision_recall_density_coverage(ours[0].features, ours[1].features)
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert score == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert manifold.precision.mean() == pytest.approx(theirs["precision"], rel=1e-6)
    assert manifold.recall.mean() == pytest.approx(theirs["recall"], rel=1e-6)
    assert fidelity_fid(ours[0].features, ours[1].features) == pytest.approx(distance, rel=1e-6)
    assert fidelity_isc(ours[0].logits[order], 3) == pytest.approx(score, rel=1e-9)


def test_torch_fidelity_goes_below_zero_where_we_do_not():
    features = torch.randn(64, 96, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert fidelity_fid(features, features) < 0 <= frechet_distance_from_features(features, features) < 1e-9


def test_missing_inception_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        prepare_inception("")
    for part in (str(tmp_path), INCEPTION_FILE, "95.7 MB", "https://github.com/toshas", "--inception_weights"):
        assert part in str(error.value)
    bad = tmp_path / "weights.pth"
    bad.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no plain file of tensors"):
        prepare_inception(str(bad))


def test_inception_weights_with_code_are_not_opened(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"weight": Attack()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="is no plain file of tensors"):
        prepare_inception(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_inception_with_random_weights_orders_corruptions(tmp_path):
    # Kaiming-initialised: with torch's default initialisation features collapse to 1e-8 and any test would pass.
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True):
            return None

    torch.save({}, tmp_path / "empty.pth")
    model = Empty("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
    torch.save(model.state_dict(), tmp_path / "inception.pth")
    extractor = prepare_inception(str(tmp_path / "inception.pth"))
    assert extractor.distance_name == "fid" and extractor.score_name == "is"
    module = load_extractor(extractor, CPU)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    real = image_set(pixels, None, "x")
    base = extract_features(module, extractor, real)
    assert base.features.shape == (6, 2048) and base.logits.shape == (6, 1008)
    levels = [extract_features(module, extractor, noisy(real, level)).features for level in (8, 32, 96)]
    values = [frechet_distance_from_features(level, base.features) for level in levels]
    assert 0 < values[0] < values[1] < values[2]
