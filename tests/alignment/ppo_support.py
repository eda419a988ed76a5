"""A PPO trainer on tiny random models, its fixtures and what tests do with it again and again."""

import pytest
import torch

from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_roles
from alignment.ppo.rewards import build_rewards
from alignment.ppo.trainer import PPOTrainer
from alignment.reward.sources.protocol import single
from launch.config import check_config
from launch.runtime import start_runtime
from tests.support import save_policy, save_reward, word_tokenizer

PROMPTS = [[3 + (i * 7 + j) % 20 for j in range(1 + i % 5)] for i in range(13)]


def prompt_rows(prompts=PROMPTS):
    tokenizer = word_tokenizer()
    return [{"prompt": tokenizer.decode(ids), "prompt_ids": ids, "number": n} for n, ids in enumerate(prompts)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ppo")
    return save_policy(root / "policy"), save_reward(root / "reward")


@pytest.fixture(scope="module")
def runtime():
    return start_runtime("fp32")


@pytest.fixture
def make(folders, runtime):
    """make(source=..., held_out=..., **changes of the config) -> a trainer."""

    def build(source=None, prompts=None, held_out=None, **changes):
        policy, reward = folders
        settings = dict(
            policy=str(policy),
            reward=str(reward),
            prompts="-",
            output_dir="-",
            batch_size=8,
            minibatches=2,
            epochs=2,
            micro_batch_size=2,
            forward_batch_size=4,
            max_new_tokens=6,
            updates=3,
            learning_rate=1e-3,
            temperature=0.9,
        )
        config = PPOConfig(**{**settings, **changes})
        check_config(config)
        roles = load_roles(config)
        if config.replay:
            return PPOTrainer(config, roles, None, [], runtime)
        source = source or build_rewards(config, roles, runtime.device)
        return PPOTrainer(config, roles, source, prompts or prompt_rows(), runtime, held_out=held_out)

    return build


class TokenReward:
    """A source: 1 for each of `token` in the response."""

    name = "token"

    def __init__(self, token=7):
        self.token = token

    def score(self, episodes):
        return single(self.name, torch.tensor([float(list(ids).count(self.token)) for ids in episodes.completion_ids]))


def stable(metrics):
    """What does not depend on the machine."""
    return {k: v for k, v in metrics.items() if not k.startswith("perf/")}


def run_updates(trainer):
    history = []
    trainer.sink = lambda number, metrics: history.append(stable(metrics))
    trainer.train()
    return history


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.engine.module.parameters()])


def scored(trainer):
    return trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts())))
