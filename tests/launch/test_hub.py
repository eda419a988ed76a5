"""Inputs of the hub: the commit that a name stands for, from a cache folder made here; no network."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from launch import hub
from launch.cli import COMMANDS
from launch.errors import UserError
from launch.files import read_json, write_json
from launch.lifecycle import is_up_to_date
from launch.plan import PlannedStage
from launch.stage import run_stage
from tests.launch.toy import STAGE, ToyConfig

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Writes what huggingface_hub leaves in its cache when a branch was downloaded."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub._ask_hub.cache_clear()

    def hold(commit, repo="models--org--tiny", revision="main"):
        path = tmp_path / "cache" / repo / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)

    yield hold
    hub._ask_hub.cache_clear()


def test_a_repository_that_moved_on_is_another_input(cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(COMMANDS, "toy", ("tests.launch.toy", "STAGE", ""))
    cache(OLD)
    config = ToyConfig(output_dir=str(tmp_path / "out"), source="hub:org/tiny")
    provenance = run_stage(STAGE, config)
    assert provenance["inputs"]["source"]["commit"] == OLD
    assert f"commit {OLD}" in (tmp_path / "out" / "README.md").read_text()
    planned = PlannedStage("toy", "toy", tmp_path / "out", [], {}, "recipe.yaml")
    write_json(tmp_path / "out" / ".recipe.json", {"fingerprint": planned.fingerprint})
    run_stage(STAGE, config)
    assert "up to date" in capsys.readouterr().err and is_up_to_date(planned)
    cache(NEW)
    assert not is_up_to_date(planned)
    with pytest.raises(UserError, match=r"another run \(source: hub:org/tiny was at commit a{12}, is now at b{12}\)"):
        run_stage(STAGE, config)
    config.overwrite = True
    assert run_stage(STAGE, config)["inputs"]["source"]["commit"] == NEW
    assert read_json(tmp_path / "out.previous" / "provenance.json")["inputs"]["source"]["commit"] == OLD


def test_what_cannot_be_known_is_said_and_not_taken_for_a_change(cache, tmp_path, capsys):
    config = ToyConfig(output_dir=str(tmp_path / "out"), source="hub:org/tiny")
    entry = run_stage(STAGE, config)["inputs"]["source"]
    assert entry["commit"] is None and "could tell the commit" in entry["commit_unknown"]
    assert "commit unknown" in (tmp_path / "out" / "README.md").read_text()
    cache(OLD)
    run_stage(STAGE, config)
    assert "up to date" in capsys.readouterr().err


def test_the_commit_that_loading_made_known_is_recorded(cache, tmp_path):
    unknown = {"source": {"source": "hub:org/tiny", "sha256": "x", "commit": None, "commit_unknown": "..."}}
    cache(NEW)
    settled = hub.settle_commits(unknown, unknown)["source"]
    assert settled["commit"] == NEW and "commit_unknown" not in settled
    before = {"source": {**unknown["source"], "commit": OLD}}  # an earlier session of the run knew it
    assert hub.settle_commits(unknown, before)["source"]["commit"] == OLD


@pytest.mark.parametrize(
    ("source", "repo", "revision"),
    [
        ("hub:org/tiny", "models--org--tiny", "main"),
        ("hub:tiny", "models--tiny", "main"),
        ("hub:org/tiny::train", "datasets--org--tiny", "main"),
        ("hub:org/tiny:config@v1.0#train[:9]", "datasets--org--tiny", "v1.0"),
    ],
)
def test_names_of_the_hub(cache, source, repo, revision):
    assert hub.find_commit(source) is None
    cache(OLD, repo, revision)
    cache(NEW, repo, "other")
    assert hub.find_commit(source) == OLD


def test_a_commit_that_is_written_out_is_the_commit(cache):
    assert hub.find_commit(f"hub:org/tiny@{NEW}") == NEW


def test_online_the_hub_is_asked_before_the_cache(cache, monkeypatch):
    cache(OLD)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    class Api:
        def repo_info(self, repo, repo_type, revision, timeout):
            asked.append((repo, repo_type, revision))
            return SimpleNamespace(sha=NEW)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert [hub.find_commit("hub:org/tiny") for _ in range(2)] == [NEW, NEW]
    assert asked == [("org/tiny", "model", "main")]
    hub._ask_hub.cache_clear()
    monkeypatch.setattr(Api, "repo_info", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    assert hub.find_commit("hub:org/tiny") == OLD
