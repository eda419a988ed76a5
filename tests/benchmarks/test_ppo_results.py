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


def test_equivalence():
    modes = result("ppo_equivalence")["modes"]
    shown = [f"{modes[mode]['largest_loss_difference']:.1e}" for mode in ("ddp", "zero1", "zero2", "zero3")]
    assert row(*shown) in PAGE
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


CASES_OF_TRL = {
    "vocabulary 1,024, fixed lengths, both fp32": "vocabulary 1024, fixed lengths, like for like",
    "natural lengths (mean 15 of 64), both fp32": "vocabulary 1024, natural lengths, like for like",
    "vocabulary 32,768, fixed lengths, both fp32": "vocabulary 32768, fixed lengths, like for like",
    "natural lengths (mean 12 of 64), both fp32": "vocabulary 32768, natural lengths, like for like",
}


@pytest.mark.parametrize("title", CASES_OF_TRL)
def test_speed_and_memory_against_trl(title):
    ratios = result("ppo-xeon")["cases"][CASES_OF_TRL[title]]["ratios"]
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {title} |")]
    speed = ratios["speed"]
    assert f"{speed['median']:.2f} [{speed['min']:.2f}, {speed['max']:.2f}]" in line.replace("**", "")
    assert f" {ratios['memory']['median']:.2f} (" in line
