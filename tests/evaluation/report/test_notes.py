"""What a report says before its numbers: other precision, generators below real images; samples that differ from nothing."""

from pathlib import Path

import pytest

from evaluation.artefacts import display_name
from evaluation.report.collect import Collection, FoundResult, FoundStage, collect
from evaluation.report.leaderboard import leaderboards
from evaluation.report.notes import copy_notes, precision_notes, yardstick_notes
from evaluation.report.samples import sample_section
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject, write_samples
from evaluation.suites.report_run import all_warnings


def images(name, value, spread, precision, kind="image generator"):
    metrics = [
        Metric("fd_digits@404", value, 404, value - spread, value + spread, ci_method="jackknife", higher_is_better=False),
        Metric("precision_digits@404", precision, 404, higher_is_better=True, unit="share"),
    ]  # fmt: skip
    return EvaluationResult("images", Subject(name, kind), Protocol("digits", "a" * 64, 404), metrics)


REAL = images("real images (held out)", 14.1, 1.0, 0.9, "images")
PIXELS = images("independent pixels", 300.0, 5.0, 0.0, "images")


@pytest.mark.parametrize(("value", "meaning"), [(12.9, "too few to tell them apart"), (9.0, "probably memorised")])
def test_a_generator_below_the_yardstick_is_explained(value, meaning):
    results = [images("gan", value, 1.0, 0.64), images("vae", 40.0, 3.0, 0.8), REAL, PIXELS]
    (note,) = yardstick_notes(leaderboards(results))
    assert note.startswith(f"gan: its Fréchet distance of {value:.1f} is below the 14.1 of real images (held out)")
    assert meaning in note and "precision (64 % against 90 %)" in note and note.count(". ") == 0
    found = Collection([FoundResult(Path("x"), r) for r in results], [], [])
    assert note in all_warnings(found, leaderboards(results))


def test_without_a_yardstick_or_above_it_nothing_is_said():
    assert yardstick_notes(leaderboards([images("gan", 9.0, 1.0, 0.6)])) == []
    assert yardstick_notes(leaderboards([images("gan", 15.0, 1.0, 0.6), REAL, PIXELS])) == []


def copies(name, share, low, high, kind="image generator", **extra):
    entry = Metric("training_copies_digits@404", share, 404, low, high, ci_method="wilson", unit="share", extra=extra)
    return EvaluationResult("images", Subject(name, kind), Protocol("digits", "a" * 64, 404), [entry])


def test_a_generator_that_copies_is_named_with_both_numbers():
    known = {"real_images_within": 0.0088, "training": "embedded:digits::train"}
    results = [
        copies("gan", 0.31, 0.27, 0.36, **known),
        copies("vae", 0.013, 0.006, 0.03, **known),  # as real images are, within chance
        copies("real images (held out)", 1.0, 0.99, 1.0, "images", **known),
        copies("old", 0.31, 0.27, 0.36),  # written before the share of real images was
    ]
    (note,) = copy_notes(results)
    assert note.startswith("gan: it copies") and "31.0 % [27.0, 36.0]" in note and "as 0.9 % of real images are" in note
    assert "embedded:digits::train" in note and note.count(". ") == 0
    found = Collection([FoundResult(Path("x"), r) for r in results], [], [])
    assert note in all_warnings(found, leaderboards(results))


# ---------------------------------------------------------------------------------------------- precision


def stage(name, command, precision, model=None):
    inputs = {"model": {"path": model, "sha256": model * 64}} if model else {}
    record = {"stage": command, "content_sha256": name[0] * 64, "precision": precision, "inputs": inputs}
    return FoundStage(name, Path("/runs") / name, record, [])


def text(name, precision="fp32", completions=None):
    parents = {"completions": completions * 64} if completions else {}
    subject = Subject(name, "language model", f"/runs/{name}", name[0] * 64, parents)
    return FoundResult(
        Path("/x") / name,
        EvaluationResult("text", subject, Protocol("d", "a" * 64, 9, settings={"precision": precision}), []),
    )


def test_models_of_other_precision_are_named():
    stages = [stage("sft", "sft", "fp32"), stage("ppo", "ppo", "bf16")]
    (note,) = precision_notes(Collection([text("sft"), text("ppo")], stages, []))
    assert "Language models: not all were trained in the same precision (bf16: ppo; fp32: sft)" in note
    assert precision_notes(Collection([text("sft"), text("sft")], stages, [])) == []


def test_measuring_and_sampling_in_other_precision_is_named():
    (measured,) = precision_notes(Collection([text("sft"), text("ppo", "bf16")], [], []))
    assert "measured by `evaluate text`" in measured
    stages = [stage("1", "generate", "fp32", "s"), stage("2", "generate", "bf16", "p")]
    (sampled,) = precision_notes(Collection([text("sft", completions="1"), text("ppo", completions="2")], stages, []))
    assert "sampled in the same precision (bf16: ppo; fp32: sft)" in sampled


def test_the_precision_of_an_image_generator_is_that_of_its_training():
    """The subject is a folder of samples, whose own precision may be another."""
    stages = [stage("v", "train-generative", "fp32"), stage("g", "train-generative", "bf16")]
    stages += [stage("x", "sample", "fp32", "v"), stage("y", "sample", "fp32", "g")]
    results = [
        FoundResult(Path(n), EvaluationResult("images", Subject(n, "image generator", f"/runs/{s}"), Protocol("d", "a" * 64, 9), []))
        for n, s in (("vae", "x"), ("gan", "y"))
    ]  # fmt: skip
    (note,) = precision_notes(Collection(results, stages, []))
    assert note.startswith("Image generators: not all were trained in the same precision (bf16: gan; fp32: vae)")


# ---------------------------------------------------------------------------------------------- names and samples


def test_a_folder_inside_a_run_is_named_by_its_run(tmp_path):
    best = tmp_path / "ppo_lora" / "best"
    best.mkdir(parents=True)
    assert display_name(str(best)) == "best"
    (tmp_path / "ppo_lora" / "run.json").write_text("{}")
    assert display_name(str(best)) == "ppo_lora best" == display_name(f"{best}/completions.jsonl")
    assert display_name(str(best.parent)) == "ppo_lora" and display_name("hub:org/name") == "name"


def test_a_gain_of_nothing_is_no_gain(tmp_path):
    rows = [
        {"prompt": f"p{i}", "completion": "a", "baseline_completion": "b", "reward": 1.0 + gain, "baseline_reward": 1.0}
        for i, gain in enumerate([0.5, 0.004, 0.0, -0.004])
    ]
    result = EvaluationResult(
        "win-rate", Subject("ppo", "language model"), Protocol("d", "a" * 64, 4, baseline="sft"),
        [Metric("win_rate", 0.5, 4)], samples=write_samples(tmp_path, rows),
    )  # fmt: skip
    result.save(tmp_path)
    groups = {g.title: g.samples for g in sample_section(collect([tmp_path]).results, "ppo").groups}
    assert [s.prompt for s in groups["Largest gains over sft"]] == ["p0"]
    assert "Largest losses against sft" not in groups and len(groups["Lowest rewards of ppo"]) == 4
