import pytest

from evaluation.images.extractors import prepare_digits


@pytest.fixture(scope="session")
def digits_extractor(tmp_path_factory):
    """(extractor, accuracy), trained once for all tests."""
    return prepare_digits(tmp_path_factory.mktemp("extractor"))
