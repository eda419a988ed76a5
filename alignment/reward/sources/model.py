"""A reward model as a source: on token ids where it has the policy's tokenizer, on text where it has its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.reward.model import RewardModel
from alignment.reward.sources.protocol import Episodes, Scores, single
from data.records import Turns
from evaluation.scoring import score_ids
from launch.errors import UserError
from launch.exchange import Beat


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

    def reads_ids(self, prompts: Sequence[Turns]) -> bool:
        """Whether the judge is given the policy's token ids as they are, and not text."""
        return self._same_ids and (self._same_template or all(isinstance(prompt, str) for prompt in prompts))

    def encode(self, episodes: Episodes) -> list[list[int]]:
        """Token ids for the judge: those that the policy sampled, where they mean the same to it.

        A tokenizer of its own, or without knowing the policy's, reads the text anew: prompts through its own chat template, completions with its own EOS
        where they ended and with none where they were cut off. So are rows with an id beyond the judge's embeddings:
        the policy's are padded to a larger number, and its tokenizer has no text for such an id either.
        """
        if not self.reads_ids(episodes.prompts):
            return self.judge.encode(episodes.prompts, episodes.completions, episodes.finished)
        known = self.judge.model.config.get_text_config().vocab_size
        rows = [[*p, *c] for p, c in zip(episodes.prompt_ids, episodes.completion_ids, strict=True)]
        for row in [i for i, ids in enumerate(rows) if max(ids, default=0) >= known]:
            turns, text, ended = episodes.prompts[row], episodes.completions[row], episodes.finished[row]
            rows[row] = self.judge.encode([turns], [text], [ended])[0]
        return rows

    def rewards(self, episodes: Episodes) -> Tensor:
        """The scores (B,). UserError names this source and the first row that its context does not hold."""
        try:
            ids = self.encode(episodes)
            return score_ids(self.judge.model, ids, self.batch_tokens, lambda rows: self.beat())
        except UserError as error:
            raise UserError(f"reward {self.name}: {error}") from None

    def score(self, episodes: Episodes) -> Scores:
        return single(self.name, self.rewards(episodes))
