"""A reward model as a source: on token ids where it has the policy's tokenizer, on text where it has its own."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.exchange import Beat
from alignment.reward.model import RewardModel
from alignment.reward.sources.protocol import Episodes, Scores, single
from evaluation.scoring import score_ids
from launch.errors import UserError


class ModelSource:
    """The score of a sequence classifier with one label, read at the last token of the completion."""

    def __init__(
        self,
        name: str,
        judge: RewardModel,
        policy_tokenizer: PreTrainedTokenizerBase | None,
        batch_tokens: int = 8192,
        beat: Beat = lambda: None,
    ) -> None:
        self.name, self.judge, self.batch_tokens, self.beat = name, judge, batch_tokens, beat
        self._same_ids = policy_tokenizer is not None and judge.same_tokenizer(policy_tokenizer)
        self._same_template = judge.tokenizer.chat_template == getattr(policy_tokenizer, "chat_template", None)

    def encode(self, episodes: Episodes) -> list[list[int]]:
        """Token ids for the judge: those that the policy sampled, where they mean the same to it.

        A tokenizer of its own, or without knowing the policy's, reads the text anew: prompts through its own chat template, completions with its own EOS
        where they ended and with none where they were cut off.
        """
        texts_only = all(isinstance(prompt, str) for prompt in episodes.prompts)
        if self._same_ids and (texts_only or self._same_template):
            return [[*p, *c] for p, c in zip(episodes.prompt_ids, episodes.completion_ids, strict=True)]
        return self.judge.encode(episodes.prompts, episodes.completions, episodes.finished)

    def rewards(self, episodes: Episodes) -> Tensor:
        """The scores (B,). UserError names this source and the first row that its context does not hold."""
        try:
            ids = self.encode(episodes)
            return score_ids(self.judge.model, ids, self.batch_tokens, lambda rows: self.beat())
        except UserError as error:
            raise UserError(f"reward {self.name}: {error}") from None

    def score(self, episodes: Episodes) -> Scores:
        return single(self.name, self.rewards(episodes))
