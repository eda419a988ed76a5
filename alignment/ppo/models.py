"""The roles of PPO, loaded as a config names them: each a model of its own, or all on one base (LoRA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.lora.adapted import AdaptedModel
from alignment.lora.config import LoraOptions
from alignment.models import load_causal, load_tokenizer, switch_off_dropout
from alignment.ppo.config import PPOConfig, SharedLora
from alignment.ppo.rewards import models_of
from alignment.ppo.roles import Roles, value_head
from alignment.ppo.shared import CRITIC, POLICY, REFERENCE, SharedRoles, reward_names
from alignment.reward.head import init_head, load_scorer
from data.tokenizer import same_ids
from evaluation.adapters import Adapter, adapter_folder, read_adapter, same_base, split_adapter
from evaluation.loading import locate, read_classifier, read_tokenizer
from launch.errors import UserError


def load_roles(config: PPOConfig) -> Roles | SharedRoles:
    """Load policy, critic (where the estimator needs one) and reference in float32; under ZeRO-3 partitioned."""
    tokenizer = load_tokenizer(config.policy, "policy")
    if config.lora is not None:
        return load_shared(config, config.lora, tokenizer)
    actor = load_causal(config.policy, tokenizer, partitioned=True, field="policy")
    frozen = None
    if not config.replay:
        if config.reference:
            check_ids("reference", config.reference, tokenizer, "give a reference with the policy's tokenizer")
        frozen = load_causal(config.reference or config.policy, tokenizer, partitioned=True, field="reference")
    on_trunk = config.needs_critic and config.critic_from == "trunk"
    critic = load_critic(config, tokenizer) if config.needs_critic and not on_trunk else None
    models = {role: model for role, model in (("reference", frozen), ("critic", critic)) if model is not None}
    for role, model in models.items():
        size = model.config.get_text_config().vocab_size
        if size != actor.config.get_text_config().vocab_size:
            raise UserError(
                f"{role}: its vocabulary has {size} tokens, the policy's {actor.config.get_text_config().vocab_size}; "
                f"they read the same token ids: give a {role} with the policy's tokenizer"
            )
    for model in (actor, *models.values()):
        switch_off_dropout(model)  # the ratio is 1 at the first step only without it (checklist item 10)
    return Roles(actor, critic, frozen, tokenizer, make_trunk_head(config, actor, tokenizer) if on_trunk else None)


def load_critic(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A one-label sequence-classification model whose head `score` gives a value at every token."""
    if not config.critic and config.critic_from == "policy":
        return load_scorer(config.policy, tokenizer, config.seed)
    if config.critic:
        return read_critic("critic", config.critic, tokenizer)
    return read_critic("reward", first_reward_model(config), tokenizer)


def check_ids(key: str, name: str, tokenizer: PreTrainedTokenizerBase, remedy: str) -> None:
    """UserError unless a model's tokenizer gives ids the meaning that the policy's gives them."""
    if not same_ids(read_tokenizer(key, name), tokenizer):
        raise UserError(f"{key}: {name} has another tokenizer than the policy, whose token ids it would read; {remedy}")


def read_critic(key: str, name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A critic that was saved, or a reward model to start one from; `key` is the option that names it."""
    remedy = "give a critic with the policy's tokenizer, or none and --critic_from policy or trunk"
    if key == "reward":
        remedy = "it may judge (it is given text), but for the critic add --critic_from policy or trunk"
    check_ids(key, name, tokenizer, remedy)
    critic = read_classifier(key, name, None)
    if not isinstance(getattr(critic, "score", None), nn.Module):
        raise UserError(
            f"{key}: {name} has no head named `score`; use a decoder reward model such as `alignkit reward` makes"
        )
    return critic


def first_reward_model(config: PPOConfig) -> str:
    """The reward model that `critic_from: reward` means."""
    return next(source.model for source in config.sources.values() if source.model)


def make_trunk_head(config: PPOConfig, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> nn.Linear:
    """A value head on the policy's trunk: of zeros, or that of a saved critic."""
    head = value_head(policy)
    if config.critic:
        folder = adapter_folder(config.critic)
        saved = (
            read_adapter("critic", folder).head_LD
            if folder
            else read_critic("critic", config.critic, tokenizer).score.weight
        )
        set_head(head, config.critic, saved)
    return head


@torch.no_grad()
def set_head(head: nn.Linear, source: str, saved_LD: Tensor | None) -> None:
    """Copy a saved head. UserError unless it is one label on states of the same width."""
    if saved_LD is None or saved_LD.shape != head.weight.shape:
        found = "no head" if saved_LD is None else f"a head of shape {tuple(saved_LD.shape)}"
        raise UserError(
            f"critic: {source} has {found}, the policy needs one of shape {tuple(head.weight.shape)}; give a reward "
            "model or critic of the policy's kind"
        )
    head.weight.copy_(saved_LD)


# ---------------------------------------------------------------------------------------------- on one base


def load_shared(config: PPOConfig, options: SharedLora, tokenizer: PreTrainedTokenizerBase) -> SharedRoles:
    """All roles as adapters of the base that the policy is an adapter of, or that it is itself.

    A reward model on the same base shares it; another one is loaded by itself, as a source of reward.
    """
    base, start = split_adapter("policy", config.policy)
    if start is not None and start.head_LD is not None:
        raise UserError(
            f"policy: {start.source}: an adapter with a head `score` is a reward model; give one that `alignkit sft "
            "--lora.rank` made"
        )
    rewards = rewards_on(config, base)
    trained = _load_base(base, tokenizer, partitioned=True)
    reference = reference_on(config, base, start)
    if reference is not None and not config.replay:
        trained.add_frozen(REFERENCE, reference, "reference")
    trained.add_trained(POLICY, options, config.seed, start)
    score = _add_critic(config, options, trained, start, rewards, tokenizer) if config.needs_critic else None
    local = trained
    whole = not any(hasattr(parameter, "ds_id") for parameter in trained.model.parameters())
    if not whole and (rewards or not options.merged_sampler):
        local = _load_base(base, tokenizer, partitioned=False)
        local.add_trained(POLICY, options, config.seed, start)
    for name, adapter in zip(reward_names(rewards), rewards.values(), strict=True) if not config.replay else ():
        local.add_frozen(name, adapter, "rewards")
    return SharedRoles(trained, local, score, rewards, tokenizer, options.merged_sampler)


def _load_base(base: str, tokenizer: PreTrainedTokenizerBase, partitioned: bool) -> AdaptedModel:
    model = load_causal(base, tokenizer, partitioned, field="policy")
    switch_off_dropout(model)
    return AdaptedModel(model, base, default=POLICY)


def rewards_on(config: PPOConfig, base: str) -> dict[str, Adapter]:
    """The config's reward models, the gold judge's too, that are adapters of a base, by their names in the config."""
    found: dict[str, Adapter] = {}
    for source in (*config.sources.values(), *config.evaluation.judge.values()):
        for name in models_of(source):
            root, adapter = split_adapter("rewards", name)
            if adapter is not None and same_base(root, base):
                found[name] = check_judge("rewards", adapter)
    return found


def check_judge(field: str, adapter: Adapter) -> Adapter:
    """UserError unless an adapter is a classifier's with one label."""
    labels = 0 if adapter.head_LD is None else len(adapter.head_LD)
    if labels != 1:
        raise UserError(
            f"{field}: {adapter.source}: an adapter with {labels} labels, a reward model or critic has one; train one with "
            "`alignkit reward --lora.rank`"
        )
    return adapter


def reference_on(config: PPOConfig, base: str, start: Adapter | None) -> Adapter | None:
    """The reference's adapter, None for the bare base. It is the SFT model that the policy starts from, unless given."""
    if not config.reference:
        return start
    root, adapter = split_adapter("reference", locate("reference", config.reference))
    if not same_base(root, base):
        raise UserError(
            f"reference: {config.reference} is not on the policy's base {base}, which all roles share with lora; give an "
            "adapter of that base or the base itself, or leave reference out"
        )
    return adapter


def _add_critic(
    config: PPOConfig,
    options: LoraOptions,
    trained: AdaptedModel,
    start: Adapter | None,
    rewards: dict[str, Adapter],
    tokenizer: PreTrainedTokenizerBase,
) -> nn.Linear:
    """The value head; and, unless it reads the policy's trunk, the critic's adapter."""
    if config.critic_from == "trunk":
        return make_trunk_head(config, trained.model, tokenizer)
    head = value_head(trained.model)
    if not config.critic and config.critic_from == "policy":
        init_head(head.weight, config.seed)
        trained.add_trained(CRITIC, options, config.seed, start)
        return head
    source = config.critic or first_reward_model(config)
    root, adapter = split_adapter("critic", locate("critic", source))
    if adapter is None or not same_base(root, trained.base):
        raise UserError(
            f"{'critic' if config.critic else 'critic_from'}: {source} is no adapter of the policy's base {trained.base}, "
            "which the critic shares with lora; choose --critic_from policy or trunk, or train the reward model with "
            "--lora.rank on that base"
        )
    set_head(head, source, check_judge("critic", adapter).head_LD)
    trained.add_trained(CRITIC, options, config.seed, adapter)
    return head
