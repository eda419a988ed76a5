"""A reward model as a judge: the answer with the higher reward wins. It reads each answer alone, so order cannot sway it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.encoding import encode_completions, encode_prompts
from data.records import Turns
from evaluation.judges.duels import Duel, Verdict
from evaluation.options import BATCH_TOKENS
from evaluation.schema import Judge as JudgeRecord
from evaluation.scoring import check_context, encode
from evaluation.shared_prefix import reward_continuations

CHARACTERS_PER_TOKEN = 4
UNIT_BATCHES = 16
"""Batches between two writes of the log: enough that rows of like length meet."""


def rewards_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Turns],
    texts: Sequence[Turns],
    ended: Sequence[bool],
    batch_tokens: int = BATCH_TOKENS,
    alive: Callable[[], object] = lambda: None,
) -> list[float]:
    """Rewards of texts as answers to prompts, encoded as training does it; equal prompts run once."""
    contexts = encode_prompts(tokenizer, list(prompts))
    tails = encode_completions(tokenizer, list(prompts), list(texts), list(ended))
    return reward_continuations(model, contexts, tails, batch_tokens, lambda n: alive()).tolist()


def longest_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Turns], answers: Sequence[Sequence[tuple[Turns, bool]]]
) -> list[int]:
    """Tokens of each prompt with the longest of its answers, each given with whether it ended."""
    flat = [(prompt, text, end) for prompt, own in zip(prompts, answers, strict=True) for text, end in own]
    lengths = iter(map(len, encode(tokenizer, *(list(column) for column in zip(*flat, strict=True)))))
    return [max(itertools.islice(lengths, len(own))) for own in answers]


class RewardModelJudge:
    """Judges by the rewards of both answers; `alive` is called as it works, for a watchdog."""

    sees_order = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        record: JudgeRecord,
        batch_tokens: int = BATCH_TOKENS,
        alive: Callable[[], object] = lambda: None,
    ) -> None:
        self.model, self.tokenizer, self.batch_tokens, self.alive = model, tokenizer, batch_tokens, alive
        self.name, self._record = record.path, record
        self.budget = UNIT_BATCHES * CHARACTERS_PER_TOKEN * batch_tokens

    def size(self, duel: Duel) -> int:
        return duel.size

    def lengths(self, duels: Sequence[Duel]) -> list[int]:
        """Tokens of each duel's prompt with the longer of its answers."""
        answers = [[(a.text, a.finished) for a in (duel.first, duel.second)] for duel in duels]
        return longest_rows(self.tokenizer, [duel.prompt for duel in duels], answers)

    def check(self, duels: Sequence[Duel]) -> None:
        check_context(self.model, self.lengths(duels), "pair")

    def settings(self) -> dict[str, Any]:
        return {"judge": "reward model", "sha256": self._record.sha256}

    def record(self) -> JudgeRecord:
        return self._record

    def judge(self, duels: Sequence[Duel]) -> list[Verdict]:
        """`rewards` of both answers; the same answer twice is a tie, whatever the last bits of its rewards."""
        prompts = [duel.prompt for duel in duels] * 2
        answers = [duel.first for duel in duels] + [duel.second for duel in duels]
        texts, ended = [a.text for a in answers], [a.finished for a in answers]
        rewards = rewards_of(self.model, self.tokenizer, prompts, texts, ended, self.batch_tokens, self.alive)
        pairs = zip(duels, rewards[: len(duels)], rewards[len(duels) :], strict=True)
        return [{"vote": _vote(0.0 if duel.same else a - b), "rewards": [a, b]} for duel, a, b in pairs]


def _vote(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)
