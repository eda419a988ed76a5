"""What belongs to a run: its identity, the content of its artefact, and what the model card says of it."""

import math
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from launch import provenance, stage
from launch.cli import COMMANDS
from launch.config import artefact, operational, python_function
from launch.errors import UserError
from launch.files import write_json
from launch.provenance import write_model_card
from launch.stage import Stage, StageConfig, describe_run, run_stage
from tests.launch.toy import STAGE, ToyConfig


def test_the_split_of_a_source_belongs_to_the_run(tmp_path):
    (tmp_path / "in.txt").write_text("x")
    runs = [
        describe_run(STAGE, ToyConfig(output_dir="o", source=f"{tmp_path}/in.txt{split}"))
        for split in ("", "::train", "::eval")
    ]
    assert len({run["identity"] for run in runs}) == 3
    assert len({run["inputs"]["source"]["sha256"] for run in runs}) == 1  # the data are the same
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "in.txt").write_text("x")
    moved = describe_run(STAGE, ToyConfig(output_dir="o", source=f"{tmp_path}/moved/in.txt::eval"))
    assert moved["identity"] == runs[2]["identity"]


@pytest.mark.parametrize("source", ["in.txt", "embedded:python-prose"])
def test_a_run_with_other_splits_is_another_run(tmp_path, monkeypatch, source):
    (tmp_path / "in.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    runs = []
    for version in (provenance.SPLITS_VERSION, 1):
        monkeypatch.setattr(provenance, "SPLITS_VERSION", version)
        runs += [describe_run(STAGE, ToyConfig(output_dir="o", source=source + split)) for split in ("", "::train")]
    whole, part, old_whole, old_part = (run["identity"] for run in runs)
    assert whole == old_whole and part != old_part


@dataclass(kw_only=True)
class Part:
    """A config within a config."""

    path: str | None = artefact(None)
    function: str | None = python_function()
    weight: float = 1.0
    patience: float = operational(1.0)


@dataclass(kw_only=True)
class PartsConfig(StageConfig):
    """A stage with configs in a mapping."""

    parts: dict[str, Part] = field(default_factory=dict)


def write_parts(config, job):
    (job.output_dir / "result.txt").write_text("done")
    return {"parts": len(config.parts)}


PARTS = Stage("parts", PartsConfig, write_parts)


def test_weights_of_nested_configs_belong_to_the_run_places_do_not(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in.txt").write_text("x")
        (tmp_path / name / "f.py").write_text("def f(): ...\n")

    def run(place="one", **changes):
        parts = {
            "a": Part(path=f"{tmp_path}/{place}/in.txt"),
            "b": Part(function=f"{tmp_path}/{place}/f.py:f", **changes),
        }
        return PartsConfig(output_dir=str(tmp_path / "out"), parts=parts)

    first = describe_run(PARTS, run())
    assert set(first["inputs"]) == {"parts.a.path", "parts.b.function"}
    assert describe_run(PARTS, run("two", patience=9.0))["identity"] == first["identity"]
    assert describe_run(PARTS, run(weight=2.0))["identity"] != first["identity"]
    run_stage(PARTS, run())
    with pytest.raises(UserError, match=r"another run \(parts\.b\.weight was 1\.0, is now 2\.0\)"):
        run_stage(PARTS, run(weight=2.0))
    (tmp_path / "two" / "f.py").write_text("def f(): return 1\n")
    with pytest.raises(UserError, match=r"another run \(parts\.b\.function differs\)"):
        run_stage(PARTS, run("two"))


def test_what_another_version_of_a_stage_wrote_is_not_up_to_date(tmp_path, monkeypatch):
    from launch.lifecycle import PlannedStage, is_up_to_date

    config = ToyConfig(output_dir=str(tmp_path / "out"))
    run_stage(STAGE, config)
    planned = PlannedStage("toy", "toy", tmp_path / "out", [], {}, "recipe.yaml")
    write_json(tmp_path / "out" / ".recipe.json", {"fingerprint": planned.fingerprint})
    monkeypatch.setitem(COMMANDS, "toy", ("tests.launch.toy", "STAGE", ""))
    assert is_up_to_date(planned)
    newer = replace(STAGE, version=2)
    monkeypatch.setattr("tests.launch.toy.STAGE", newer)
    assert not is_up_to_date(planned)
    with pytest.raises(
        UserError, match=r"holds another run \(of another version of alignkit.*--overwrite to start over"
    ):
        run_stage(newer, config)
    run_stage(newer, replace(config, overwrite=True))
    assert not is_up_to_date(planned)  # another run, which no recipe made
    write_json(tmp_path / "out" / ".recipe.json", {"fingerprint": planned.fingerprint})
    assert is_up_to_date(planned)


def test_a_lifecycle_sees_that_a_function_has_changed(tmp_path, monkeypatch):
    from launch.lifecycle import PlannedStage, is_up_to_date

    source = tmp_path / "f.py"
    source.write_text("def f(): ...\n")
    folder = tmp_path / "out"
    run_stage(PARTS, PartsConfig(output_dir=str(folder), parts={"a": Part(function=f"{source}:f")}))
    monkeypatch.setitem(COMMANDS, "parts", (__name__, "STAGE", ""))
    planned = PlannedStage("parts", "parts", folder, [], {}, "recipe.yaml")
    write_json(folder / ".recipe.json", {"fingerprint": planned.fingerprint})
    assert is_up_to_date(planned)
    source.write_text("def f(): return 1\n")
    assert not is_up_to_date(planned)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("[10"), flip_a_byte])
def test_an_artefact_that_is_not_what_was_written_is_made_again(tmp_path, capsys, damage):
    config = ToyConfig(output_dir=str(tmp_path / "out"))
    run_stage(STAGE, config)
    before = (tmp_path / "out" / "result.txt").read_text()
    damage(tmp_path / "out" / "result.txt")
    run_stage(STAGE, config)
    assert "result.txt is gone or has changed since the run was complete" in capsys.readouterr().err
    assert (tmp_path / "out" / "result.txt").read_text() == before
    run_stage(STAGE, config)
    assert "up to date" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["a", "a/result.txt", "a/../a", "a/result.txt::eval"])
@pytest.mark.parametrize("damage", [Path.unlink, flip_a_byte])
def test_an_input_that_is_not_what_its_stage_wrote_is_refused(tmp_path, monkeypatch, damage, source):
    monkeypatch.chdir(tmp_path)
    run_stage(STAGE, ToyConfig(output_dir="a"))
    run_stage(STAGE, ToyConfig(output_dir="b", source=source))
    damage(tmp_path / "a" / "result.txt")
    changed = ToyConfig(output_dir="b", source=source, rate=0.25, overwrite=True)
    with pytest.raises(UserError, match=r"source: .*result\.txt.*(alignkit toy|no such file)"):
        run_stage(STAGE, changed)
    assert (tmp_path / "b" / "result.txt").exists() and not (tmp_path / "b.previous").exists()  # nothing was moved
    run_stage(STAGE, ToyConfig(output_dir="a"))
    run_stage(STAGE, changed)
    (tmp_path / "a" / "note.txt").write_text("a file that the stage did not write harms nobody")
    run_stage(STAGE, ToyConfig(output_dir="c", source=source))


def test_the_artefact_is_on_the_disk_before_the_provenance_vouches_for_it(tmp_path, monkeypatch):
    synced = []

    def watch(path):
        assert not (tmp_path / "out" / "provenance.json").exists()
        synced.append(path.name)

    monkeypatch.setattr(stage, "fsync_path", watch)
    run_stage(STAGE, ToyConfig(output_dir=str(tmp_path / "out")))
    assert {"result.txt", "out"} <= set(synced)


def _diffusers(name):
    return {"_diffusers_version": "1", "_class_name": name}


def test_model_card_lists_results_of_evaluation_alone_and_whole_numbers_whole(tmp_path):
    write_json(tmp_path / "config.json", {"architectures": ["Qwen3ForCausalLM"]})
    record = {"inputs": {}, "versions": {}, "seconds": 1.0, "config": {}}
    evaluated = {
        "heldout/bits_per_byte": 1.9,
        "eval_loss": 2.7,
        "eval/win_rate": 0.6,
        "accuracy_low": 0.7,
        "best/kl_k1": 2.0,
    }
    training = {
        "train/lr": 7.5e-6,
        "policy/clip_fraction": 0.1,
        "parameters": 1_054_336,
        "eval_rows": 707,
        "best/step": 3,
    }
    training |= {"tokens": 1_000_448.0, "lost": math.inf}
    write_model_card(tmp_path, "toy", {**evaluated, **training}, record)
    _, header, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    (listed,) = yaml.safe_load(header)["model-index"][0]["results"]
    assert {entry["type"]: entry["value"] for entry in listed["metrics"]} == evaluated
    assert (
        "| parameters | 1,054,336 |" in body and "| tokens | 1,000,448 |" in body and "| train/lr | 7.5e-06 |" in body
    )
    assert "| lost | inf |" in body


@pytest.mark.parametrize(
    ("files", "library", "task"),
    [
        ({"config.json": {"architectures": ["Qwen3ForCausalLM"]}}, "transformers", "text-generation"),
        ({"config.json": {"architectures": ["Qwen3ForSequenceClassification"]}}, "transformers", "text-classification"),
        ({"config.json": _diffusers("UNet2DModel")}, "diffusers", "unconditional-image-generation"),
        ({"config.json": _diffusers("AutoencoderKL")}, "diffusers", "unconditional-image-generation"),
        ({"config.json": _diffusers("VAE")}, "alignkit", "unconditional-image-generation"),
        ({"config.json": _diffusers("GAN")}, "alignkit", "unconditional-image-generation"),
        ({"model_index.json": {}}, "diffusers", "unconditional-image-generation"),
        ({"results.json": {}}, None, None),
    ],
)
def test_model_card_names_library_and_task_of_the_model_in_the_folder(tmp_path, files, library, task):
    for name, content in files.items():
        write_json(tmp_path / name, content)
    record = {"inputs": {}, "versions": {}, "seconds": 1.0, "config": {}}
    write_model_card(tmp_path, "toy", {"loss": 1.0}, record)
    header = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert (header.get("library_name"), header.get("pipeline_tag")) == (library, task)
    found = [result["task"]["type"] for model in header.get("model-index", []) for result in model["results"]]
    assert found == ([task] if task else [])
    write_model_card(tmp_path, "toy", {"loss": 1.0}, record, "other", "translation")  # what a Stage says wins
    header = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert (header["library_name"], header["pipeline_tag"]) == ("other", "translation")


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    """`ru_maxrss` of the child would be at least 400 MiB."""
    held = b"x" * (400 << 20)
    code = """
        from launch.provenance import peak_memory_mib
        before = peak_memory_mib()
        held = b"x" * (96 << 20)
        del held
        print(before, peak_memory_mib())
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before < 200 < len(held) >> 20 and 90 < after - before < 100
