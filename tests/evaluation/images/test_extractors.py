"""The extractors: names, hashes, what they compute, and one sentence for everything that is missing."""

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch

from data.images import image_set, load_images
from evaluation.images.extractors.base import Extractor
from evaluation.images.extractors.choose import FIELDS, READS, ExtractorConfig
from evaluation.images.extractors.classifier import (
    ImageClassifier,
    classification_hits,
    count_seen,
    load_classifier,
    train_classifier,
    weights_hash,
)
from evaluation.images.extractors.function import prepare_function
from evaluation.images.extractors.inception import BYTES, FILE, SHA256, prepare_inception
from evaluation.images.extractors.prepare import prepare_extractor
from evaluation.images.extractors.vision import prepare_vision
from evaluation.images.features import FeatureSource
from launch.config import build
from launch.errors import UserError

CPU = torch.device("cpu")


def pictures(count=5, channels=3, side=40, seed=0):
    return image_set(
        np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8), None, "x"
    )


# ---------------------------------------------------------------------------------------------- names


def test_only_the_published_inception_gives_a_fid():
    published = Extractor("inception", "0", "", lambda device: None, defines_fid=True)
    other = Extractor("dinov2", "0", "", lambda device: None)
    scores = ("fd", "is", "kd", "md", "precision", "cmmd")
    assert [published.score_name(s) for s in scores] == [
        "fid",
        "is",
        "kid",
        "mind",
        "precision_inception",
        "cmmd_inception",
    ]
    assert [other.score_name(s) for s in scores] == [f"{s}_dinov2" for s in scores]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"extractor": "model"}, "model: extractor 'model' needs model; give one"),
        ({"extractor": "classifier"}, "classifier_data: extractor 'classifier' needs classifier_data or model"),
        (
            {"extractor": "classifier", "model": "a", "classifier_data": "b"},
            "classifier_data: extractor 'classifier' needs",
        ),
        ({"model": "folder"}, "model: the extractor 'digits' does not read it; .* --extractor classifier or dinov2"),
        ({"extractor": "clip", "function": "a.py:b"}, "function: the extractor 'clip' does not read it"),
    ],
)
def test_fields_that_are_missing_or_not_read(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(ExtractorConfig, values, "recipe").check_extractor()


def test_every_field_is_read_by_some_extractor():
    assert {name for reads in READS.values() for name in reads} == set(FIELDS)


# ---------------------------------------------------------------------------------------------- the classifier


def test_the_digits_extractor_knows_digits(digits_extractor):
    accuracy = float(digits_extractor.description.split("accuracy ")[1].split()[0])
    assert accuracy > 0.97 and digits_extractor.score_name("fd") == "fd_digits"


def test_training_is_deterministic_whatever_ran_before():
    train = load_images("embedded:digits::eval")
    torch.manual_seed(1)
    first = weights_hash(train_classifier(train, epochs=1).state_dict())
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert weights_hash(train_classifier(train, epochs=1).state_dict()) == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert weights_hash(train_classifier(train, seed=1, epochs=1).state_dict()) != first
    with pytest.raises(UserError, match="has no labels"):
        train_classifier(dataclasses.replace(train, labels=None))
    with pytest.raises(UserError, match="has the label -1"):
        train_classifier(dataclasses.replace(train, labels=train.labels - 1))


def test_features_are_those_of_the_classifier_in_float64(tmp_path, ranks):
    train = load_images("embedded:digits::eval").sample(200, 0)
    config = ExtractorConfig(extractor="classifier", classifier_data=str(tmp_path / "train.npz"))
    np.savez(tmp_path / "train.npz", images=train.images, labels=train.labels)
    extractor = prepare_extractor(config, tmp_path, ranks)
    found = FeatureSource(extractor, ranks).of(train)
    model = ImageClassifier()
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "classifier-extractor.safetensors"))
    with torch.no_grad():
        features, logits = model.double()(torch.from_numpy(train.images).double() / 255)
    assert np.allclose(found.features, features, atol=1e-12) and np.allclose(found.logits, logits, atol=1e-12)
    assert extractor.name == "classifier" and "200 images of" in extractor.description
    again = load_classifier(tmp_path / "classifier-extractor.safetensors")
    assert (again.sha256, again.description) == (extractor.sha256, extractor.description)
    with pytest.raises(UserError, match="40x40 RGB, the classifier extractor takes 8x8 grey"):
        FeatureSource(extractor, ranks).of(pictures())
    (tmp_path / "other.safetensors").write_bytes(safetensors.torch.save({"w": torch.zeros(3)}))
    for path in ("other.safetensors", "nowhere.safetensors"):
        with pytest.raises(UserError, match=f"{path}: is no classifier of `alignkit evaluate images`"):
            load_classifier(tmp_path / path)


def test_the_classifier_takes_any_size_and_colours():
    side, channels = 24, 3
    labels = np.arange(64) % 2
    planes = np.random.default_rng(0).integers(0, 90, (64, channels, side, side), dtype=np.uint8)
    planes[labels == 1, 0] += 150
    model = train_classifier(image_set(planes, labels, "colours"), epochs=8)
    features, logits = model(torch.from_numpy(planes).float() / 255)
    assert features.shape == (64, 64) and (logits.argmax(1).numpy() == labels).mean() > 0.9


def test_classification_accuracy_asks_for_every_class():
    whole, real = load_images("embedded:digits::train"), load_images("embedded:digits::eval")
    half = whole.take(whole.labels < 5)
    everything, partial = classification_hits(whole, real).mean(), classification_hits(half, real).mean()
    assert everything > 0.97
    assert partial == pytest.approx((real.labels < 5).mean(), abs=0.03)  # right on those classes alone
    with pytest.raises(UserError, match="has no labels"):
        classification_hits(whole, dataclasses.replace(real, labels=None))
    with pytest.raises(UserError, match="images of shape"):
        classification_hits(whole, dataclasses.replace(pictures(), labels=np.zeros(5, dtype=np.int64)))


def test_seen_images_are_counted_by_their_pixels():
    assert count_seen(load_images("embedded:digits")) == 872 and count_seen(load_images("embedded:digits::eval")) == 0


# ---------------------------------------------------------------------------------------------- Inception


def test_missing_inception_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        prepare_inception("")
    for part in (str(tmp_path), FILE, f"{BYTES:,} bytes", SHA256, "https://github.com/toshas", "--inception_weights"):
        assert part in str(error.value)
    assert SHA256.startswith(FILE.split("-")[-1].removesuffix(".pth"))
    bad = tmp_path / "weights.pth"
    bad.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no plain file of tensors"):
        prepare_inception(str(bad))
    torch.save({"w": torch.zeros(2)}, bad)
    with pytest.raises(UserError, match="holds other weights than Inception's"):
        prepare_inception(str(bad)).load(CPU)


def test_inception_weights_with_code_are_not_opened(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"weight": Attack()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="is no plain file of tensors"):
        prepare_inception(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "executed").exists()


# ---------------------------------------------------------------------------------------------- transformers


def save_vision(folder, kind):
    """A tiny random image model of transformers with its processor."""
    from transformers import (
        BitImageProcessor,
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    image = dict(image_size=28, patch_size=14)
    made = {
        "dinov2": lambda: Dinov2Model(
            Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, **image)
        ),
        "clip": lambda: CLIPModel(
            CLIPConfig(
                text_config={**sizes, "vocab_size": 50},
                vision_config={**sizes, **image, "projection_dim": 12},
                projection_dim=12,
            )
        ),
        "vit": lambda: ViTForImageClassification(ViTConfig(**sizes, **image, num_labels=5)),
        "resnet": lambda: ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
        ),
    }[kind]()
    made.save_pretrained(folder)
    crop = {"height": 28, "width": 28}
    processor = CLIPImageProcessor if kind == "clip" else BitImageProcessor
    processor(size={"shortest_edge": 28}, crop_size=crop).save_pretrained(folder)
    return str(folder), made.eval()


@pytest.mark.parametrize(
    ("kind", "family", "width", "classes"),
    [("dinov2", "dinov2", 16, None), ("clip", "clip", 12, None), ("vit", "model", 16, 5), ("resnet", "model", 16, 4)],
)
def test_image_models_of_transformers(tmp_path, ranks, kind, family, width, classes):
    from transformers import AutoImageProcessor

    source, model = save_vision(tmp_path / kind, kind)
    extractor = prepare_vision(family, source)
    images = pictures(6)
    found = FeatureSource(extractor, ranks).of(images)
    pixels = AutoImageProcessor.from_pretrained(source)(
        images=list(torch.from_numpy(images.images)), return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        expected = {
            "dinov2": lambda: model(pixels).last_hidden_state[:, 0],
            "clip": lambda: model.visual_projection(model.vision_model(pixels).pooler_output),
            "vit": lambda: model.vit(pixels).last_hidden_state[:, 0],
            "resnet": lambda: model.resnet(pixels).pooler_output.flatten(1),
        }[kind]()
        logits = model(pixels).logits if classes else None
    assert found.features.shape == (6, width) and np.allclose(found.features, expected, atol=1e-5)
    assert np.std(found.features, axis=0).max() > 1e-3  # it does look at the images
    assert (found.logits is None) == (classes is None)
    if classes:
        assert np.allclose(found.logits, logits, atol=1e-5)
    assert extractor.name == (family if family != "model" else kind)
    grey = FeatureSource(extractor, ranks).of(pictures(3, channels=1))
    assert grey.features.shape == (3, width)


def test_the_hash_of_a_model_is_that_of_weights_and_preprocessing(tmp_path):
    source, model = save_vision(tmp_path / "a", "dinov2")
    first = prepare_vision("dinov2", source).sha256
    other, _ = save_vision(tmp_path / "b", "dinov2")
    assert prepare_vision("dinov2", other).sha256 == first  # wherever it lies
    with torch.no_grad():
        model.layernorm.bias[0] += 1
    model.save_pretrained(other)
    assert prepare_vision("dinov2", other).sha256 != first
    processor = tmp_path / "a" / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("0.485", "0.5").replace("0.48145466", "0.5"))
    assert prepare_vision("dinov2", source).sha256 != first


def test_models_that_cannot_be_used_are_named(tmp_path):
    source, _ = save_vision(tmp_path / "vit", "vit")
    with pytest.raises(UserError, match=r"model: .*vit: is a model of type 'vit', not dinov2; give --extractor model"):
        prepare_vision("dinov2", source)
    with pytest.raises(UserError, match=r"model: .*nowhere: no such folder"):
        prepare_vision("model", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="model: hub:facebook/dinov2-large: could not be loaded as an image model"):
        prepare_vision("dinov2", "")  # HF_HUB_OFFLINE: the usual one is not here
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="could not be loaded as an image model"):
        prepare_vision("model", source)


# ---------------------------------------------------------------------------------------------- a function


def test_a_function_of_the_user(tmp_path, ranks):
    file = tmp_path / "mine.py"
    file.write_text(
        "def pooled(images):\n    return images.double().mean(dim=(2, 3))\n"
        "def both(images):\n    return images.double().mean(dim=(2, 3)).numpy(), images.double().flatten(1)[:, :4]\n"
        "def wrong(images):\n    return images.double()\n"
        "def undefined(images):\n    return images.double().mean(dim=(2, 3)) * float('nan')\n"
    )
    images = pictures(7)
    extractor = prepare_function(f"{file}:pooled")
    found = FeatureSource(extractor, ranks).of(images)
    assert extractor.name == "pooled" and found.logits is None
    assert np.allclose(found.features, images.images.mean(axis=(2, 3)))
    assert FeatureSource(prepare_function(f"{file}:both"), ranks).of(images).logits.shape == (7, 4)
    with pytest.raises(UserError, match=r"function: .*wrong: gives shape \(7, 3, 40, 40\) for 7 images"):
        FeatureSource(prepare_function(f"{file}:wrong"), ranks).of(images)
    with pytest.raises(UserError, match="x: row 0 holds NaN or infinity; look at that image"):
        FeatureSource(prepare_function(f"{file}:undefined"), ranks).of(images)
    before = extractor.sha256
    file.write_text(file.read_text() + "\n")
    assert prepare_function(f"{file}:pooled").sha256 != before


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("images @ 3", r"raised TypeError: .*, line 2 of mine\.py for 7 images; mend it"),
        ("open('weights.pt')", r"raised FileNotFoundError: .*weights\.pt.*, line 2 of mine\.py"),
        ("(images, images, images)", "gives 3 values; return features, or features and logits"),
        ("None", "gives a NoneType that is no matrix"),
        ("[[1.0], [1.0, 2.0]]", "gives a list that is no matrix"),
    ],
)
def test_a_function_of_the_user_that_fails_is_one_sentence(tmp_path, ranks, body, sentence):
    (tmp_path / "mine.py").write_text(f"def f(images):\n    return {body}\n")
    with pytest.raises(UserError, match=rf"^function: .*mine\.py:f: {sentence}"):
        FeatureSource(prepare_function(f"{tmp_path / 'mine.py'}:f"), ranks).of(pictures(7))
