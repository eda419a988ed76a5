"""A reward model that can be used anywhere: `RewardModel.from_pretrained(name).score(prompts, completions)`.

Any sequence-classification model with one label serves. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.tokenizer import same_ids
from launch.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from data.records import Turns


class RewardModel:
    """A one-label sequence classifier with its tokenizer, in eval mode, on its device."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        field: str = "reward",
    ) -> RewardModel:
        """Load a folder or a hub model (`org/name`, or `hub:org/name`), or a LoRA adapter of one. Code of the hub is never run.

        `device`: the GPU if there is one when not given. `dtype`: float32 when not given. `field`: the key of the config
        that names the model, for errors. The weights are whole also under ZeRO-3. UserError when the model has no
        trained head, not exactly one label, no pad token, or fewer embeddings than its tokenizer has tokens.
        """
        import torch

        from evaluation.loading import read_classifier, read_tokenizer
        from launch.zero import plain_weights

        tokenizer = read_tokenizer(field, name)
        with plain_weights():
            model = read_classifier(field, name, tokenizer, dtype)
        if model.config.get_text_config().pad_token_id is None:
            raise UserError(
                f"{field}: {name}: no pad_token_id in its config.json, so batches cannot be padded; set it to the tokenizer's pad token"
            )
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def encode(
        self, prompts: Sequence[Turns], completions: Sequence[Turns], ended: Sequence[bool] | None = None
    ) -> list[list[int]]:
        """Token ids of prompt + completion, and EOS where they `ended` (all, unless given); messages go through the
        tokenizer's chat template."""
        from evaluation.scoring import encode

        return encode(self.tokenizer, prompts, completions, ended)

    def score(
        self,
        prompts: Sequence[Turns],
        completions: Sequence[Turns],
        batch_tokens: int = 8192,
        ended: Sequence[bool] | None = None,
    ) -> list[float]:
        """Rewards of completions, read at their EOS; they do not depend on what else is scored with them.

        `batch_tokens`: padded size of a batch. `ended`: False for a completion that was cut off before its EOS; it is
        read at its last token. All have ended unless given. UserError names the first row that is neither text nor
        messages, or longer than the context.
        """
        from evaluation.scoring import score_ids

        return score_ids(self.model, self.encode(prompts, completions, ended), batch_tokens).tolist()

    def score_tokens(self, input_ids: Tensor, attention_mask: Tensor, batch_size: int = 64) -> Tensor:
        """Rewards (B,) float32, on the device of `input_ids`, of token ids (B, S) padded on either side or on both.

        Padding is what the mask says, and the reward is read at the last real token, be it EOS or not. So a pad token
        within a prompt and a response that was cut off are both read at the right place.
        """
        from evaluation.scoring import score_ids

        rows = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
        real = [[token for token, keep in zip(ids, mask, strict=True) if keep] for ids, mask in rows]
        return score_ids(self.model, real, batch_size * input_ids.shape[1]).to(input_ids.device)

    def same_tokenizer(self, other: PreTrainedTokenizerBase) -> bool:
        """Whether token ids of another tokenizer mean the same here, so that `score_tokens` may be given them."""
        return same_ids(self.tokenizer, other)
