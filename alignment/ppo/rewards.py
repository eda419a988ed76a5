"""The reward source of a PPO run: `build_source`, with the reward models that share the policy's base put in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from alignment.ppo.config import PPOConfig
from alignment.reward.sources.build import build_source
from alignment.reward.sources.combined import CombinedSource
from alignment.reward.sources.config import SourceConfig
from alignment.reward.sources.ensemble import EnsembleSource
from alignment.reward.sources.model import ModelSource
from alignment.reward.sources.protocol import RewardSource
from launch.exchange import Beat, Say


def build_rewards(
    config: PPOConfig,
    roles: Any,
    device: torch.device,
    beat: Beat = lambda: None,
    say: Say = lambda line: None,
    batch_tokens: int = 8192,
    sources: Mapping[str, SourceConfig] | None = None,
) -> RewardSource:
    """The weighted sum of the config's sources, or of others, as of its gold judge; arguments as of `build_source`."""
    wanted = config.sources if sources is None else sources
    build = partial(
        build_source,
        device=device,
        policy_tokenizer=roles.tokenizer,
        seed=config.seed,
        beat=beat,
        say=say,
        batch_tokens=batch_tokens,
    )
    judges = roles.judges(device)
    shared = {name for name, source in wanted.items() if models_of(source) and judges.keys() >= set(models_of(source))}
    rest = {name: source for name, source in wanted.items() if name not in shared}
    if not shared:
        return build(rest)
    made = dict(build(rest).sources) if rest else {}  # type: ignore[attr-defined]
    for name in shared:
        source = wanted[name]
        members = [ModelSource(name, judges[path], roles.tokenizer, batch_tokens, beat) for path in models_of(source)]
        whole = EnsembleSource(name, members, **source.options()) if source.ensemble else members[0]
        made[name] = (source.weight, whole)
    return CombinedSource({name: made[name] for name in wanted})


def models_of(source: SourceConfig) -> list[str]:
    """The reward models that a source consists of."""
    return [source.model] if source.model else list(source.ensemble)
