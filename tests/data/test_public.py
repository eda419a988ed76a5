"""The package's front: names resolve, and importing them stays cheap."""

import importlib
import inspect
import subprocess
import sys

import pytest

import data


@pytest.mark.parametrize("name", data.__all__)
def test_every_public_name_resolves(name):
    found = getattr(data, name)
    if type(found) is type or inspect.isfunction(found):  # neither a constant nor an alias of types
        assert (found.__module__, found.__name__) == (f"data.{data._HOME[name]}", name)
    assert found is getattr(importlib.import_module(f"data.{data._HOME[name]}"), name)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'data' has no attribute 'load_preference'"):
        data.load_preference
    assert "load_preferences" in dir(data)


def test_loading_imports_neither_torch_nor_transformers():
    code = (
        "import sys\n"
        "from data import load_preferences, load_documents, pack_documents, deduplicate, hold_out, train_tokenizer\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn', 'pyarrow', 'pandas', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=str(data.__path__[0]) + "/..")
