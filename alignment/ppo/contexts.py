"""Whether every model of a run can read its longest episode: asked at the start, not found out at the first long response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from alignment.ppo.rollout import Prompt
from alignment.reward.sources.combined import CombinedSource
from alignment.reward.sources.ensemble import EnsembleSource
from alignment.reward.sources.model import ModelSource
from alignment.reward.sources.protocol import RewardSource
from evaluation.scoring import context_of
from launch.errors import UserError


def check_contexts(roles: Any, sources: Sequence[RewardSource | None], prompts: Sequence[Prompt], new: int) -> None:
    """UserError for the first model that does not hold the longest of the prompts (rows) and `new` tokens behind it.

    Judges that read text are not asked: only their own tokenizer knows how long a text is.
    """
    longest = max((len(row["prompt_ids"]) for row in prompts), default=0)
    models = {role: getattr(roles, role) for role in ("policy", "critic", "reference")}
    named = [(role, model) for role, model in models.items() if model is not None]
    judges = [judge for source in sources for judge in _model_sources(source)]
    turns = [row.get("prompt", "") for row in prompts]
    named += [(f"reward {judge.name}", judge.judge.model) for judge in judges if judge.reads_ids(turns)]
    for name, model in named:
        context = context_of(model)
        if context is not None and longest + new > context:
            raise UserError(
                f"{name}: its context of {context} tokens does not hold the longest prompt ({longest}) with "
                f"max_new_tokens ({new}); lower max_prompt_tokens or max_new_tokens, or give a model with a longer "
                "context"
            )


def _model_sources(source: RewardSource | None) -> Iterator[ModelSource]:
    """The reward models that a source consists of."""
    if isinstance(source, ModelSource):
        yield source
    elif isinstance(source, EnsembleSource):
        yield from source.members
    elif isinstance(source, CombinedSource):
        for _, part in source.sources.values():
            yield from _model_sources(part)
