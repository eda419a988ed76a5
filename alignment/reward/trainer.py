"""TRL's RewardTrainer with ties, in our stage contract."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference, suppress_seqcls_warning

from alignment.models import switch_off_dropout
from alignment.reward.objective import centering_penalty, pairwise_losses
from alignment.trl_stage.trainer import Batch, StageTrainer
from data import Preference
from data.encoding import encode_completions, encode_prompts, keep_fitting
from evaluation.loading import check_embeddings, load_merged, named_errors
from launch.seeding import torch_generator

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


def load_scorer(name: str, tokenizer: Any, seed: int) -> PreTrainedModel:
    """A sequence classifier with one label on the body of a causal language model, its head drawn anew.

    pad_token_id is set, since it tells transformers where a row ends. Dropout is off: the pair's difference must come
    from the texts.
    """
    with named_errors("model", name, "a causal language model"), suppress_seqcls_warning():
        model: Any
        model, _ = load_merged("model", name, AutoModelForSequenceClassification, num_labels=1, dtype=torch.float32)
    check_embeddings("model", name, model, tokenizer)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    switch_off_dropout(model)
    init_head(model.score.weight, seed)
    keep_head_in_fp32(model.score)
    return model


def keep_head_in_fp32(head: Any) -> None:
    """Let the head compute in float32 whatever the precision around it (as evaluation/scoring.py does).

    In bf16 a reward has 8 bits: close answers would tie, and a margin of 0.01 between rewards of 5 would be lost.
    """
    head.forward = types.MethodType(_forward_in_fp32, head)  # a method follows its head into peft's deep copy of it


def _forward_in_fp32(head: Any, hidden: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.float(), head.weight.float())


def init_head(weight: nn.Parameter, seed: int) -> None:
    """Draw a head (1, D) from N(0, 1/sqrt(D + 1)) (Stiennon et al. 2020; Huang et al. 2024, detail 13).

    1/sqrt(D + 1) is the standard deviation. On features of unit scale the first rewards then have unit scale, too.
    Under ZeRO-3 the weight is partitioned: it is gathered, and rank 0's values are the ones that count.
    """
    partitioned = hasattr(weight, "ds_id")
    shape = getattr(weight, "ds_shape", weight.shape)
    values = torch.randn(shape, generator=torch_generator(seed, "reward/head")) / math.sqrt(shape[-1] + 1)
    if not partitioned:
        weight.data.copy_(values)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        weight.data.copy_(values)


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
        self._record(chosen_B.detach(), rejected_B.detach(), inputs["tie"])
        self._total_train_tokens += int(self.job.runtime.sum(inputs["attention_mask"].sum()))
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
        for name, value in {**metrics, "num_tokens": self._total_train_tokens}.items():
            self._metrics["train"][name].append(value)

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
