"""A tiny policy, reference, reward model and trainer for the tests of PPO's checklist and of its peers' bugs."""

import dataclasses

import torch

from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_roles
from alignment.ppo.rollout import make_batch
from alignment.ppo.trainer import PPOTrainer
from alignment.reward.sources.build import build_source
from alignment.reward.sources.protocol import single
from tests.alignment.ppo_support import prompt_rows, stable
from tests.support import save_policy, save_reward

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


def make_trainer(models, runtime, prompts=None, source=None, **changes):
    """A trainer whose reference is another model, so that the KL is not 0; `reference=None` takes the policy's start."""
    config = PPOConfig(**{**models, **SETTINGS, **changes})
    roles = load_roles(config)
    source = source or build_source(config.sources, runtime.device, roles.tokenizer, config.seed)
    return PPOTrainer(config, roles, source, prompt_rows(prompts) if prompts else prompt_rows(), runtime)


class FixedReward:
    """A source that gives what a function says of each episode's completion ids."""

    name = "fixed"

    def __init__(self, function):
        self.function = function

    def score(self, episodes):
        return single(self.name, torch.tensor([float(self.function(list(ids))) for ids in episodes.completion_ids]))


def scored_rollout(trainer):
    return trainer.score(trainer.rollout(trainer.next_prompts()))


def one_update(trainer, rollout=None):
    """The metrics of an update, machine-dependent ones left out."""
    rollout = trainer.advantages(rollout or scored_rollout(trainer))
    return stable(trainer.log(rollout, trainer.update(rollout)))


def passes(trainer, rollout):
    """Log-probabilities, entropies and values of all response tokens in one pass, (B, T) each."""
    rows = range(len(rollout))
    batch = make_batch(rollout, rows, trainer.sampling.pad_id)
    with torch.no_grad():
        return tuple(rollout.spread(values, rows) for values in trainer.learner.forward(batch))


def take(rollout, order):
    """The episodes in another order, or some of them."""
    index = torch.tensor(order)
    changed = {}
    for field in dataclasses.fields(rollout):
        value = getattr(rollout, field.name)
        if isinstance(value, torch.Tensor):
            changed[field.name] = value[index]
        elif isinstance(value, list):
            changed[field.name] = [value[i] for i in order]
    changed["components"] = {name: value[index] for name, value in rollout.components.items()}
    return dataclasses.replace(rollout, **changed)


def full_logits(model, rollout, row):
    """Logits at the positions before each response token of an episode, by a plain forward pass: (T_row, V), on the CPU."""
    prompt, response = rollout.prompt_ids[row], rollout.responses[row]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]], device=model.device)).logits[0].cpu()
    return logits[len(prompt) - 1 : -1]


def weights_of(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.engine.module.parameters()])
