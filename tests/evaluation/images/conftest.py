"""Extractors that are made once for all tests."""

from types import SimpleNamespace

import pytest
import torch

from evaluation.images.extractors.classifier import load_classifier, train_digits


def one_rank(device="cpu"):
    """What a job of one process is to the code under test."""
    return SimpleNamespace(
        is_main=True,
        rank=0,
        world=1,
        device=torch.device(device),
        gather_objects=lambda value: [value],
        broadcast=lambda value: value,
        barrier=lambda: None,
    )


@pytest.fixture
def ranks():
    return one_rank()


@pytest.fixture(scope="session")
def digits_extractor(tmp_path_factory):
    return load_classifier(train_digits(tmp_path_factory.mktemp("extractor")), "digits")


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory):
    """A file of Inception weights, Kaiming-initialised: with torch's default features collapse to 1e-8, and tests are vacuous."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True):
            return None

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    model = Empty("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(folder / "empty.pth"))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
    torch.save(model.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"
