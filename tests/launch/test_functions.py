"""Python functions that a config names: found without running anything, hashed with their file, loaded on request."""

import os
import sys

import pytest

from launch.errors import UserError
from launch.functions import find_file, fingerprint, load_function
from launch.provenance import fingerprint_input

SOURCE = "def double(x):\n    return 2 * x\n\n\ndef triple(x):\n    return 3 * x\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose import leaves a mark."""
    folder = tmp_path / "judging" / "inner"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("import os\nos.environ['JUDGING_RAN'] = '1'\n")
    (folder / "__init__.py").touch()
    (folder / "rules.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("JUDGING_RAN", raising=False)
    yield folder / "rules.py"
    for name in [n for n in sys.modules if n.split(".")[0] == "judging"]:
        del sys.modules[name]
    os.environ.pop("JUDGING_RAN", None)


def test_a_function_of_a_file(tmp_path):
    (tmp_path / "reward.py").write_text(SOURCE)
    assert load_function("f", f"{tmp_path}/reward.py:triple")(5) == 15


def test_a_function_of_a_module_is_found_without_importing_its_package(package):
    assert find_file("f", "judging.inner.rules:double") == package
    assert len(fingerprint("f", "judging.inner.rules:double")) == 64
    assert "JUDGING_RAN" not in os.environ and "judging" not in sys.modules
    assert load_function("f", "judging.inner.rules:double")(5) == 10
    assert "JUDGING_RAN" in os.environ


def test_the_fingerprint_is_of_content_and_name_not_of_the_place(tmp_path):
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "reward.py", tmp_path / "there" / "other.py"):
        path.write_text(SOURCE)
    here, there, triple = (
        fingerprint_input("f", f"python:{tmp_path}/{name}")["sha256"]
        for name in ("reward.py:double", "there/other.py:double", "reward.py:triple")
    )
    assert here == there != triple
    (tmp_path / "reward.py").write_text(SOURCE.replace("2 *", "4 *"))
    assert fingerprint_input("f", f"python:{tmp_path}/reward.py:double")["sha256"] != here


def test_what_runs_is_what_the_file_holds_now(tmp_path, monkeypatch):
    """Python's own import takes a cached compilation when size and second of the change are the same."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "reward.py"
    for factor in (2, 3):
        path.write_text(SOURCE.replace("2 *", f"{factor} *"))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert load_function("f", f"{path}:double")(1) == factor
    assert [p.name for p in tmp_path.iterdir()] == ["reward.py"]  # nothing is left beside the user's file


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("reward.py", r"f: 'reward\.py' names no function; write path/to/file\.py:function"),
        ("reward.py:", "names no function"),
        ("some words:f", "names no function"),
        ("{}/rewards.py:double", r"rewards\.py: no such file; did you mean 'reward\.py'"),
        ("{}/reward.py:dubble", r"has no function 'dubble'; did you mean 'double'"),
        ("{}/reward.py:LIMIT", r"has no function 'LIMIT'"),
        ("{}/broken.py:f", r"broken\.py:f: could not be loaded \(SyntaxError: .*line 2 of broken\.py\); mend it"),
        ("{}/raises.py:f", r"could not be loaded \(KeyError: 'x', line 1 of raises\.py\)"),
        ("no_such_module.rules:f", r"f: no_such_module\.rules: no such Python module here"),
        ("os.path.nothing:f", "no such Python module"),
        ("sys:f", "no such Python module"),
    ],
)
def test_mistakes(tmp_path, value, message):
    (tmp_path / "reward.py").write_text(SOURCE + "LIMIT = 3\n")
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "raises.py").write_text("{}['x']\n")
    with pytest.raises(UserError, match=message):
        load_function("f", value.format(tmp_path))
