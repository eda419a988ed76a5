"""From the config of rewards to one source that scores with all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignment.reward.model import RewardModel
from alignment.reward.sources.combined import CombinedSource
from alignment.reward.sources.config import SourceConfig
from alignment.reward.sources.ensemble import EnsembleSource
from alignment.reward.sources.function import FunctionSource
from alignment.reward.sources.model import ModelSource
from alignment.reward.sources.protocol import RewardSource
from alignment.reward.sources.rules import Rule, RuleSource, format_rule, length_rule, repetition_rule
from alignment.reward.sources.service import ServiceSource
from launch.addresses import read_secret
from launch.errors import UserError
from launch.exchange import Backoff, Beat, Endpoint, Say
from launch.functions import find_file, load_function

RULES: dict[str, Callable[..., Rule]] = {
    "length": length_rule,
    "repetition": repetition_rule,
    "format": format_rule,
}


@dataclass(frozen=True)
class _Place:
    """What sources need besides their own config."""

    device: torch.device
    tokenizer: PreTrainedTokenizerBase | None
    seed: int
    beat: Beat
    say: Say
    batch_tokens: int


def build_source(
    rewards: Mapping[str, SourceConfig],
    device: torch.device,
    policy_tokenizer: PreTrainedTokenizerBase | None,
    seed: int = 0,
    beat: Beat = lambda: None,
    say: Say = lambda line: None,
    batch_tokens: int = 8192,
) -> RewardSource:
    """The weighted sum of the named sources (see `named_rewards`), loaded onto `device`; models are whole on each rank.

    `policy_tokenizer`: what made the token ids of the episodes; without it reward models read their text, and services
    cannot be asked. `seed`: of the back-off's jitter, no reward depends on it. `beat`: called between batches, and while a service or a
    function is waited for (of the latter in another thread), so that a watchdog sees that this process lives; it may raise. `say`: takes
    a line for the user.
    `batch_tokens`: padded size of a reward model's batch. UserError names the source that cannot be had.
    """
    place = _Place(device, policy_tokenizer, seed, beat, say, batch_tokens)
    return CombinedSource({name: (config.weight, _build_one(name, config, place)) for name, config in rewards.items()})


def _build_one(name: str, config: SourceConfig, place: _Place) -> RewardSource:
    if config.model:
        return _build_model(name, config.model, f"rewards.{name}.model", place)
    if config.ensemble:
        fields = [f"rewards.{name}.ensemble[{i}]" for i in range(len(config.ensemble))]
        members = [_build_model(name, path, field, place) for path, field in zip(config.ensemble, fields, strict=True)]
        return EnsembleSource(name, members, **config.options())
    if config.function:
        field = f"rewards.{name}.function"
        function, file = load_function(field, config.function), find_file(field, config.function)
        return FunctionSource(name, function, config.function, file, **config.options(), beat=place.beat, say=place.say)
    if config.rule:
        return RuleSource(name, RULES[config.rule](**config.options()))
    return _build_service(name, config, place)


def _build_model(name: str, path: str, field: str, place: _Place) -> ModelSource:
    judge = RewardModel.from_pretrained(path, device=place.device, field=field)
    return ModelSource(name, judge, place.tokenizer, place.batch_tokens, place.beat)


def _build_service(name: str, config: SourceConfig, place: _Place) -> ServiceSource:
    if place.tokenizer is None:
        raise UserError(
            f"rewards.{name}.url: a service is sent the EOS and the chat template of the tokenizer that made the "
            "completions, which is not known; add --tokenizer PATH"
        )
    options: dict[str, Any] = config.options()
    options.pop("service", None)
    token = read_secret(f"rewards.{name}.token_env", options.pop("token_env", None))
    timeout = {"timeout_s": options.pop("timeout_s")} if "timeout_s" in options else {}
    return ServiceSource(
        name,
        Endpoint(config.url or "", token=token, **timeout),
        place.tokenizer,
        Backoff(place.seed, f"reward-service-{name}"),
        beat=place.beat,
        say=place.say,
        **options,
    )
