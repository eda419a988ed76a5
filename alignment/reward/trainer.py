"""TRL's RewardTrainer with ties, in our stage contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from alignment.reward.objective import centering_penalty, pairwise_losses
from alignment.trl_stage.trainer import Batch, StageTrainer
from data import Preference
from data.encoding import encode_completions, encode_prompts, keep_fitting

Row = dict[str, Any]


def make_rows(
    tokenizer: Any, preferences: Sequence[Preference], limit: int, margin_per_strength: float
) -> tuple[list[Row], int]:
    """Rows {chosen_ids, rejected_ids, margin, tie, pair} of the preferences that fit, and how many were too long."""
    prompts = [p.prompt for p in preferences]
    heads = encode_prompts(tokenizer, prompts)
    tails = [encode_completions(tokenizer, prompts, [getattr(p, side) for p in preferences]) for side in SIDES]
    rows = [
        {
            "chosen_ids": head + chosen,
            "rejected_ids": head + rejected,
            "margin": margin_per_strength * (preference.strength or 0.0),
            "tie": preference.tie,
            "pair": preference,
            "origin": preference.origin,
        }
        for head, chosen, rejected, preference in zip(heads, *tails, preferences, strict=True)
    ]
    return keep_fitting(rows, [pair_length(row) for row in rows], limit)


SIDES = ("chosen", "rejected")
COLUMNS = ("chosen_ids", "rejected_ids", "margin", "tie")


def pair_length(row: Row) -> int:
    """Tokens of the longer side."""
    return max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def tokenised(rows: Sequence[Row]) -> Dataset:
    """Rows as the data set that TRL takes without preparing it again."""
    return Dataset.from_list([{name: row[name] for name in COLUMNS} for row in rows])


class PairCollator(DataCollatorForPreference):
    """TRL's collator, with `tie` (B,)."""

    def torch_call(self, examples: list[Row]) -> dict[str, Any]:
        """input_ids and attention_mask (2B, S), chosen rows first; margin and tie (B,)."""
        return {**super().torch_call(examples), "tie": torch.tensor([row["tie"] for row in examples])}


class PairTrainer(StageTrainer, RewardTrainer):
    """RewardTrainer with margins and ties, and metrics that are sums over all ranks."""

    eval_names = ("loss", "correct", "decided", "pairs")

    def __init__(self, *, centering: float, **rest: Any) -> None:
        self.centering = centering
        super().__init__(**rest)

    def rewards(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rewards of the chosen and of the rejected texts, (B,) each, float32."""
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        chosen_B, rejected_B = out.logits[:, 0].chunk(2)
        return chosen_B, rejected_B

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Mean loss of the pairs of a micro-batch (micro-batches are of one size, so the mean of means is the mean)."""
        chosen_B, rejected_B = self.rewards(model, inputs)
        loss = pairwise_losses(chosen_B, rejected_B, inputs["margin"], inputs["tie"]).mean()
        if self.centering > 0:
            loss = loss + self.centering * centering_penalty(chosen_B, rejected_B)
        self._total_train_tokens += int(self.job.runtime.sum(inputs["attention_mask"].sum()))
        self._record(chosen_B.detach(), rejected_B.detach(), inputs["tie"])
        return loss

    def _record(self, chosen_B: Tensor, rejected_B: Tensor, tie_B: Tensor) -> None:
        """Add the batch's accuracy, margin and mean reward to what the next log line averages."""
        decided_B = ~tie_B.bool()
        difference_B = chosen_B - rejected_B
        sums = [(difference_B[decided_B] > 0).sum(), decided_B.sum(), difference_B.sum()]
        sums += [chosen_B.sum() + rejected_B.sum(), torch.tensor(len(chosen_B))]
        correct, decided, margin, reward, pairs = self.job.runtime.sum(
            torch.stack([s.double().cpu() for s in sums])
        ).tolist()
        metrics = {"margin": margin / pairs, "mean_reward": reward / (2 * pairs)}
        if decided:
            metrics["accuracy"] = correct / decided
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]  # not a mean over micro-batches

    def eval_sums(self, batch: Batch, real: int) -> Tensor:
        """Sums over the pairs of a batch: loss, correct pairs, decided pairs, pairs."""
        chosen_B, rejected_B = (side[:real] for side in self.rewards(self.model_wrapped, batch))
        tie_B = batch["tie"][:real].bool()
        losses_B = pairwise_losses(chosen_B, rejected_B, tie_B=tie_B)
        correct = ((chosen_B > rejected_B) & ~tie_B).sum()
        return torch.stack([losses_B.sum(), correct, (~tie_B).sum(), torch.tensor(real, device=tie_B.device)])

    def eval_metrics(self, sums: list[float]) -> dict[str, float]:
        """Held-out loss in nats, and accuracy over the pairs that are no ties."""
        return {"loss": sums[0] / sums[3], "accuracy": sums[1] / max(sums[2], 1.0)}
