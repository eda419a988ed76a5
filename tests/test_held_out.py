"""No held-out document is ever trained on: every training stage alone, and the demo's recipe stage by stage.

The real loaders decide what is trained on and what is evaluated. Models are not needed for that: where a stage would
sample, each prompt gets completions made up here.
"""

import importlib
from collections import defaultdict

import pytest

from alignment.dpo import DPOConfig
from alignment.preferences import STAGE as PREFERENCES
from alignment.pretrain import PretrainConfig
from alignment.pretrain.corpus import split_documents
from alignment.prompts import load_prompt_rows
from alignment.reward import RewardConfig
from alignment.sft import SFTConfig
from alignment.sft.stage import load_split
from alignment.trl_stage.preferences import load_preference_split
from data import (
    load_completions,
    load_documents,
    load_pairs,
    load_preferences,
    load_prompts,
    plain_text,
    save_completions,
)
from data.completions import Completion
from data.records import normalise
from launch.cli import COMMANDS
from launch.config import build, find_recipe, read_yaml
from launch.plan import plan_stages
from tests.alignment.trl_support import run, write_rows

PROSE, PAIRS = "embedded:python-prose", "embedded:docstrings"


def texts_of(items):
    """Everything in pairs and preferences that a person wrote, normalised: prompts, completions, chosen answers."""
    fields = [(item.prompt, item.chosen if hasattr(item, "chosen") else item.completion) for item in items]
    return {normalise(plain_text(text)) for pair in fields for text in pair}


def texts_of_documents(documents):
    return {normalise(document if isinstance(document, str) else document.text) for document in documents}


# ---------------------------------------------------------------------------------------------- each stage


@pytest.mark.parametrize("source", [{}, {"data": PROSE}, {"data": PROSE, "heldout": "hash:0.3"}])
def test_pretraining_never_sees_the_eval_split(source):
    config = build(PretrainConfig, source, "test")
    train, held = (texts_of_documents(part) for part in split_documents(config))
    evaluation = texts_of_documents(load_documents(f"{PROSE}::eval"))
    assert train and held and not train & (evaluation | held)
    assert evaluation <= held or not source  # the default reads `::train` and leaves the eval split alone


def test_what_pretraining_holds_out_of_a_source_and_of_its_training_split_is_nested():
    default = texts_of_documents(split_documents(PretrainConfig())[1])
    whole = texts_of_documents(split_documents(PretrainConfig(data=PROSE))[1])
    more = texts_of_documents(split_documents(PretrainConfig(heldout="hash:0.3"))[1])
    assert default < whole and default < more
    assert whole - default == texts_of_documents(load_documents(f"{PROSE}::eval"))


@pytest.mark.parametrize("source", [PAIRS, f"{PAIRS}::train", f"{PAIRS}::train/a"])
def test_sft_never_sees_the_eval_split(source):
    train, held = map(texts_of, load_split(SFTConfig(model="m", data=source)))
    evaluation = texts_of(load_pairs(f"{PAIRS}::eval"))
    assert train and held and not train & (evaluation | held)
    assert bool(held & evaluation) == (source == PAIRS)


@pytest.mark.parametrize("cls", [RewardConfig, DPOConfig])
def test_preferences_stay_on_the_side_of_the_prompts_that_they_are_made_from(cls, tmp_path):
    """Preferences made of a whole source, without a word about splits: the prompt carries its side along."""
    rows = [
        {"prompt": p.prompt, "chosen": p.completion, "rejected": f"no {n}"} for n, p in enumerate(load_pairs(PAIRS))
    ]
    data = write_rows(tmp_path / "preferences.jsonl", rows)
    train, held = map(texts_of, load_preference_split(cls(model="m", data=str(data))))
    evaluation = texts_of(load_pairs(f"{PAIRS}::eval"))
    assert train and not train & (evaluation | held) and evaluation <= held
    of_prompts = {normalise(p) for p in load_prompts(f"{PAIRS}::train/a")}
    assert of_prompts - held <= train


# ---------------------------------------------------------------------------------------------- the demo


class Walk:
    """What each artefact of a recipe was trained on, and what was evaluated of it: `trained` and `evaluated` by folder."""

    def __init__(self):
        self.trained, self.evaluated = defaultdict(set), defaultdict(set)

    def train(self, folder, texts, *models):
        self.trained[folder] = set(texts).union(*(self.trained[model] for model in models if model))

    def evaluate(self, model, texts):
        assert texts
        self.evaluated[model] |= texts

    def pretrain(self, config, folder):
        train, held = map(texts_of_documents, split_documents(config))
        self.train(folder, train)
        self.evaluate(folder, held)

    def sft(self, config, folder):
        train, held = map(texts_of, load_split(config))
        self.train(folder, train, config.model)
        self.evaluate(folder, held)

    def reward(self, config, folder):
        train, held = map(texts_of, load_preference_split(config))
        self.train(folder, train, config.model)
        self.evaluate(folder, held)
        if source := getattr(config, "normalise_on", None):
            self.trained[folder] |= answered(source)

    dpo = reward

    def ppo(self, config, folder):
        prompts = {normalise(row["prompt"]) for row in load_prompt_rows(config.prompts)}
        self.train(folder, prompts, config.policy, config.reward)

    def generate(self, config, folder):
        rows = [
            Completion(
                str(n), row["prompt"], f"made up {n} {config.temperature}", True, (1,), (2,), row["reference"], ""
            )
            for n, row in enumerate(load_prompt_rows(config.prompts, config.limit))
        ]
        save_completions(rows, folder + "/completions.jsonl")

    def preferences_build(self, config, folder):
        run(PREFERENCES, folder, "--completions", ",".join(config.completions), "--unfinished", config.unfinished)

    def evaluate_text(self, config, folder):
        self.evaluate(config.model, texts_of_documents(load_documents(config.documents)))
        self.evaluate(config.model, answered(config.completions))

    def evaluate_reward(self, config, folder):
        if config.mode == "accuracy":
            self.evaluate(config.model, texts_of(load_preferences(config.preferences, config.invalid)))
        for model in (config.judge, config.proxy, config.policy) if config.mode == "win-rate" else ():
            if model:
                self.evaluate(model, answered(config.completions) | answered(config.baseline))

    def evaluate_safety(self, config, folder):
        assert not answered(config.completions) & {
            normalise(p) for s in config.training_documents for p in (load_prompts(s) if s.startswith(PAIRS) else [])
        }


def answered(completions):
    """The prompts of a completions file and what people answered to them."""
    return {normalise(text) for row in load_completions(completions) for text in (row.prompt_text, row.reference)}


def test_the_demo_never_trains_on_what_it_evaluates(tmp_path):
    plan, walk = plan_stages(read_yaml(find_recipe("demo")), "demo", tmp_path, {}), Walk()
    walked = []
    for stage in plan:
        step = getattr(walk, stage.command.replace(" ", "_"), None)
        if step is not None:
            cls = importlib.import_module(COMMANDS[stage.command][0]).STAGE.config
            stage.folder.mkdir(exist_ok=True)
            step(build(cls, stage.config, stage.origin), str(stage.folder))
            walked.append(stage.name)
    others = {stage.command for stage in plan if stage.name not in walked}
    assert others == {"train-generative", "sample", "evaluate images", "evaluate deepfake", "report"}
    assert {str(tmp_path / name) for name in ("base", "sft", "dpo", "ppo", "reward", "gold")} <= set(walk.evaluated)
    for model, texts in walk.evaluated.items():
        assert walk.trained[model], model
        both = texts & walk.trained[model]
        assert not both, f"{model}: {len(both)} of {len(texts)} evaluated texts were trained on, such as {min(both)!r}"
