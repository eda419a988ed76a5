"""docs/reward_sources.md is executed: its recipe, its functions and its Python, on small models and a service of ours."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from alignment.ppo.config import PPOConfig
from alignment.reward.model import RewardModel
from alignment.reward.sources.build import build_source
from alignment.reward.sources.config import OPTIONS, SourceConfig, named_rewards
from alignment.reward.sources.rules import length_penalty
from evaluation.language.quality import repetition
from launch.config import build, load_config
from launch.stage import Stage, StageConfig, describe_run, run_stage
from tests.alignment.reward_support import COMPLETIONS, FINISHED, PROMPTS, FakeService, episodes, lengths
from tests.support import ROOT, save_policy, save_reward, word_tokenizer

TEXT = (ROOT / "docs" / "reward_sources.md").read_text()
REFERENCES = ["was on are", "was", "as be with by"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


@dataclass(kw_only=True)
class Config(StageConfig):
    """A config that holds rewards."""

    rewards: dict[str, SourceConfig] = field(default_factory=dict)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with everything that the documentation names, as the working directory."""
    for name, seed in (("reward", 1), ("safe_a", 2), ("safe_b", 3)):
        save_reward(tmp_path / "runs" / name, seed)
    save_policy(tmp_path / "runs" / "sft")
    (tmp_path / "ppo.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "reward.py").write_text(next(b for b in blocks("python") if b.startswith("# reward.py")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rewards_of(recipe):
    return build(Config, {"rewards": recipe["rewards"]}, "ppo.yaml").rewards


def test_the_recipe_scores_as_computed_by_hand(place):
    recipe = yaml.safe_load((place / "ppo.yaml").read_text())
    assert set(recipe) - {"rewards"} <= {f.name for f in dataclasses.fields(PPOConfig)}
    with FakeService(lambda number, request: (200, {"rewards": lengths(request)})) as service:
        recipe["rewards"]["judge"]["url"] = service.url
        rewards = named_rewards(None, rewards_of(recipe))
        source = build_source(rewards, torch.device("cpu"), word_tokenizer())
        scores = source.score(episodes(rows=[{"reference": text} for text in REFERENCES]))
    models = {p.name: RewardModel.from_pretrained(str(p)) for p in (place / "runs").iterdir() if p.name != "sft"}
    a, b = (torch.tensor(models[n].score(PROMPTS, COMPLETIONS, ended=FINISHED)) for n in ("safe_a", "safe_b"))
    ids = [word_tokenizer()(text)["input_ids"] for text in COMPLETIONS]
    expected = {
        "helpful": models["reward"].score(PROMPTS, COMPLETIONS, ended=FINISHED),
        "safe": ((a + b) / 2 - (a - b).abs() / 2).tolist(),
        "brief": [length_penalty(len(i) + end, 24, 32) for i, end in zip(ids, FINISHED, strict=True)],
        "varied": [-repetition(text.split(), 2) for text in COMPLETIONS],
        "capital": [0, 0, 0],
        "mine": [1, -3, 2],
        "each": [0, 0, 0],
        "judge": lengths({"completions": COMPLETIONS}),
    }
    assert set(scores.components) == set(expected) == set(rewards)
    for name, values in expected.items():
        assert scores.components[name].tolist() == pytest.approx(values, abs=1e-5), name
    total = [sum(rewards[name].weight * values[i] for name, values in expected.items()) for i in range(3)]
    assert scores.total_B.tolist() == pytest.approx(total, abs=1e-5)
    assert service.requests[0]["labels"] == REFERENCES


def test_the_python_runs(place):
    block = next(b for b in blocks("python") if b.startswith("from transformers"))
    names: dict = {}
    exec(block, names)
    assert names["scores"].total_B.shape == (2,)


def test_a_value_of_the_command_line_is_laid_over_one_source(place):
    (place / "rewards.yaml").write_text("rewards:" + (place / "ppo.yaml").read_text().partition("rewards:")[2])
    config = load_config(Config, ["--config", "rewards.yaml", "--rewards.brief.weight", "0.4"])
    assert config.rewards["brief"] == SourceConfig(rule="length", soft=24, hard=32, weight=0.4)


def test_every_key_is_in_the_table_and_every_option_is_one():
    table = TEXT.partition("## The kinds")[2].partition("## What is logged")[0]
    for kind, options in OPTIONS.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{kind}`"))
        assert all(f"`{option}`" in row for option in options), kind
    declared = {f.name for f in dataclasses.fields(SourceConfig)}
    assert declared == {"weight", *("model", "ensemble", "function", "rule", "url"), *sum(OPTIONS.values(), ())}


# ---------------------------------------------------------------------------------------------- identity and records


def score_once(config, job):
    source = build_source(config.rewards, job.runtime.device, word_tokenizer(), config.seed)
    (job.output_dir / "result.txt").write_text(str(source.score(episodes()).total_B.tolist()))
    return {}


STAGE = Stage("score", Config, score_once)


def test_what_belongs_to_a_run_and_what_does_not(place):
    def identity(**changes):
        return describe_run(STAGE, Config(output_dir="out", rewards={"x": SourceConfig(**changes)}))["identity"]

    (place / "moved").mkdir()
    (place / "moved" / "judge.py").write_text((place / "reward.py").read_text())
    (place / "runs" / "reward").rename(place / "moved" / "reward")
    first = identity(url="http://a/", service="v1")
    assert identity(url="http://b/x", service="v1", timeout_s=9, batch_size=3, token_env="T") == first
    assert identity(url="http://a/", service="v2") != first
    assert identity(url="http://a/", service="v1", labels="answer") != first
    assert identity(url="http://a/", service="v1", weight=2) != first
    assert identity(function="reward.py:brevity") == identity(function="moved/judge.py:brevity")
    assert identity(function="reward.py:brevity") != identity(function="reward.py:no_repeats")
    assert identity(model="runs/safe_a") != identity(model="runs/safe_b") != identity(model="moved/reward")
    assert identity(rule="length", soft=3, hard=9) != identity(rule="length", soft=3, hard=8)


def test_no_record_of_a_run_holds_the_token(place, monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    with FakeService(lambda number, request: (200, lengths(request))) as service:
        judge = SourceConfig(url=service.url, token_env="JUDGE_TOKEN")
        run_stage(STAGE, Config(output_dir="out", rewards={"judge": judge}))
    assert service.headers[0]["Authorization"] == "Bearer s3cret"
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    assert {"run.json", "provenance.json", "result.txt", "README.md"} <= {path.name for path in files}
    assert not any(b"s3cret" in path.read_bytes() for path in files)
