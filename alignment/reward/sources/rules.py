"""Rewards by rule: the length, the repetition and the form of a completion. Pure functions, and the source around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from alignment.reward.sources.protocol import Episodes, Scores, check_rewards, single
from evaluation.language.quality import REPETITION_ORDER, repetition

Rule = Callable[[str, Sequence[int]], float]
"""The reward of a completion, from its text and its token ids."""


def length_penalty(length: int, soft: int, hard: int) -> float:
    """0 up to `soft` tokens, then falling linearly to -1 at `hard` and beyond.

    The soft overlong punishment of DAPO (Yu et al. 2025, equation 13), whose L_max is `hard` and L_cache `hard - soft`.
    """
    return -min(1.0, max(0, length - soft) / (hard - soft))


def length_rule(soft: int, hard: int) -> Rule:
    """`length_penalty` of the tokens of a completion, EOS included."""
    return lambda text, ids: length_penalty(len(ids), soft, hard)


def repetition_rule(ngram: int = REPETITION_ORDER) -> Rule:
    """Minus the share of n-grams of words that are repeats of others: 0 without any, towards -1 for one word only."""
    return lambda text, ids: -repetition(text.split(), ngram)


def format_rule(pattern: str) -> Rule:
    """1 where the pattern is found in the text (`re.search`), 0 elsewhere."""
    compiled = re.compile(pattern)
    return lambda text, ids: float(compiled.search(text) is not None)


class RuleSource:
    """A rule, applied to each completion by itself."""

    row_by_row = True

    def __init__(self, name: str, rule: Rule) -> None:
        self.name, self.rule = name, rule

    def score(self, episodes: Episodes) -> Scores:
        rows = zip(episodes.completions, episodes.completion_ids, strict=True)
        values = [self.rule(text, ids) for text, ids in rows]
        return single(self.name, check_rewards(values, len(episodes), f"reward {self.name}"))
