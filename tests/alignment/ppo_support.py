"""A tiny policy, reference, reward model and trainer for the tests of PPO's checklist and of its peers' bugs."""

import dataclasses

import torch
from torch.nn.functional import pad
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_roles
from alignment.ppo.trainer import PPOTrainer
from tests.support import save_policy, save_reward, word_tokenizer

PROMPTS = [[3 + (i * 7 + j) % 20 for j in range(1 + i % 5)] for i in range(13)]
SETTINGS = dict(
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
    temperature=0.7,
    missing_eos="none",
)


def save_models(root):
    """Folders of a policy, of another one as its reference, and of a reward model: random, and all different."""
    save_policy(root / "policy"), save_policy(root / "reference", seed=5), save_reward(root / "reward")
    return {name: str(root / name) for name in ("policy", "reference", "reward")}


def save_gpt2_models(root):
    """The same of GPT-2, whose positions are learned: with rotary ones a shift of all positions of a row changes nothing."""
    shape = dict(vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5)
    special = dict(pad_token_id=0, eos_token_id=1, bos_token_id=None)
    for seed, name in enumerate(("policy", "reference", "reward")):
        torch.manual_seed(seed)
        kind = GPT2ForSequenceClassification if name == "reward" else GPT2LMHeadModel
        labels = {"num_labels": 1} if name == "reward" else {}
        kind(GPT2Config(**shape, **special, **labels)).save_pretrained(root / name)
        word_tokenizer().save_pretrained(root / name)
    return {name: str(root / name) for name in ("policy", "reference", "reward")}


def make_trainer(models, runtime, prompts=PROMPTS, **changes):
    """A trainer whose reference is another model, so that the KL is not 0; `reference=None` takes the policy's start."""
    config = PPOConfig(**{**models, **SETTINGS, **changes})
    roles = load_roles(config.policy, config.critic, config.reference, config.reward, runtime.device)
    return PPOTrainer(config, roles, prompts, runtime)


def scored_rollout(trainer):
    return trainer.score(trainer.rollout(trainer.next_prompts()))


def one_update(trainer, rollout=None):
    """The metrics of an update, machine-dependent ones left out."""
    rollout = trainer.advantages(rollout or scored_rollout(trainer))
    return dated({**trainer.rollout_metrics(rollout), **trainer.update(rollout)})


def dated(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("perf/")}


def run_updates(trainer):
    history = []
    trainer.train(lambda number, metrics: history.append(dated(metrics)))
    return history


def weights_of(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.engine.module.parameters()])


def widen(rollout, left, right, junk):
    """The same episodes with more padding on both sides, and token `junk` on all of it."""
    tokens, mask = pad(rollout.tokens_BS, (left, right)), pad(rollout.mask_BS, (left, right))
    wide = {"tokens_BS": tokens.masked_fill(mask == 0, junk), "mask_BS": mask}
    return dataclasses.replace(rollout, **wide, response_mask_BT=pad(rollout.response_mask_BT, (0, right)))


def real_tokens(rollout, row):
    """The token ids of prompt + response of one episode, without padding: (1, n)."""
    return rollout.tokens_BS[row][rollout.mask_BS[row].bool()][None]
