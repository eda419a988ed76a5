"""docs/ppo.md gives the figures that its result files hold."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "ppo.md").read_text()


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def row(*cells):
    return f"| {' | '.join(cells)} |"


CRITICS = {"a model of its own": "reward", "on the trunk": "trunk"}


@pytest.mark.parametrize("critic", CRITICS)
def test_equivalence(critic):
    modes = result("ppo_equivalence")["critics"][CRITICS[critic]]
    shown = [f"{modes[mode]['largest_loss_difference']:.1e}" for mode in ("ddp", "zero1", "zero2", "zero3")]
    assert row(critic, *shown) in PAGE
    assert max(mode["largest_loss_difference"] for mode in modes.values()) < 1e-5


CASES = ["four full models", "full, critic on the trunk", "LoRA in all four roles", "LoRA, critic on the trunk"]


@pytest.mark.parametrize("case", CASES)
def test_memory_of_lora(case):
    bytes_of = result("lora_memory")["shapes"]["113M"]["cases"][case.removesuffix(" in all four roles")]
    cells = [f"{round(bytes_of[name] / 2**20):,}" for name in ("parameters", "gradients", "optimizer", "peak")]
    assert row(case, *cells) in PAGE


def test_the_soak():
    found = result("soak")
    assert f"of {found['kills']} kills" in PAGE and f"all {found['jobs']} jobs ended as the undisturbed run" in PAGE
    assert found["jobs_identical_to_the_undisturbed_run"] == found["jobs"] and found["acknowledged_steps_lost"] == 0


def test_full_disks():
    found = result("full_disk")
    assert f"{found['bytes_left']['jobs']} jobs whose disk filled up" in PAGE and found["faults"] == []


PLACES = {
    ("1024", "fixed"): "vocabulary 1,024, fixed lengths",
    ("1024", "natural"): "natural lengths (mean 15 of 64)",
    ("32768", "fixed"): "vocabulary 32,768, fixed lengths",
    ("32768", "natural"): "natural lengths (mean 12 of 64)",
}
SETTINGS = {
    "like for like": ", both fp32",
    "defaults": ", each side's defaults",
    "defaults, critic on the trunk": ", the same, critic on the trunk",
}


@pytest.mark.parametrize("file", ["ppo-xeon", "ppo"])
def test_speed_and_memory_against_trl(file):
    """Each row begins with its place (the first of three) or with its lengths."""
    cases = result(file)["cases"]
    for (vocabulary, lengths), place in PLACES.items():
        for setting, what in SETTINGS.items():
            case = cases.get(f"vocabulary {vocabulary}, {lengths} lengths, {setting}")
            if case is None and file == "ppo-xeon" and "trunk" in setting:
                continue  # not measured there
            ratios = case["ratios"]
            speed = ratios["speed"]
            title = (place if setting == "like for like" else f"{lengths} lengths") + what
            begin = f"| {title} | {speed['median']:.2f} [{speed['min']:.2f}, {speed['max']:.2f}] ("
            (line,) = [line for line in PAGE.replace("**", "").splitlines() if line.startswith(begin)]
            assert f" {ratios['memory']['median']:.2f} (" in line
            assert f" {ratios['memory_above_imports']['median']:.2f} |" in line


def test_reward_at_equal_time():
    """Every number of both tables."""
    for name in ("reward", "reward, critic on the trunk"):
        found = result("ppo")[name]
        for part in found["ours"]["reached"]:
            cells = [f"{float(part[: part.index('%')]) / 100 * found['seconds']:.0f} s"]
            for side in ("ours", "trl"):
                reached = found[side]["reached"][part]
                cells.append(f"{reached['score']:.2f}, {reached['kl']:.1f}, {reached['objective']:.2f}")
            assert row(*cells) in PAGE


CRITICS_ON_THE_DEMO = {
    "reward model": "`reward` (default)",
    "copy of the policy": "`policy`",
    "trunk": "`trunk`",
    "trunk, value_coef 1": "`trunk`, `value_coef: 1`",
    "reward model, rewards times 10": "`reward`, rewards times 10",
    "trunk, rewards times 10": "`trunk`, rewards times 10",
}


@pytest.mark.parametrize("critic", CRITICS_ON_THE_DEMO)
def test_critics_on_the_demo(critic):
    content = result("critics")
    means, each = content["means"][critic], [f"{run['objective']:.2f}" for run in content["runs"][critic]]
    numbers = [f"{means[key]:.3f}" for key in ("win_rate", "win_rate_length_controlled")]
    numbers += [f"{means[key]:.2f}" for key in ("judge_reward", "kl_k1", "objective")]
    assert row(CRITICS_ON_THE_DEMO[critic], *numbers, ", ".join(each)) in PAGE
