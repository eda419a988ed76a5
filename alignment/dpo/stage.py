"""DPO on TRL's DPOTrainer, with rows tokenised here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig as Arguments
from trl import DPOTrainer

from alignment.dpo.config import DPOConfig
from alignment.models import context_length, load_causal, load_tokenizer, save_artefact, switch_off_dropout
from alignment.trl_stage.config import training_arguments
from alignment.trl_stage.preferences import count_contaminated, load_preference_split
from alignment.trl_stage.trainer import Batch, StageTrainer, settle_precision, train
from data import Preference
from data.encoding import encode_completions, encode_prompts, keep_fitting
from launch.stage import Job

Row = dict[str, Any]
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class PolicyTrainer(StageTrainer, DPOTrainer):
    """DPOTrainer with our checkpoints, on rows that are tokenised already."""

    eval_names = ("loss", "correct", "margin", "pairs")

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def eval_sums(self, batch: Batch, real: int) -> Tensor:
        """Sums over the pairs of a batch: DPO's loss, pairs whose implied margin is positive, margin, pairs."""
        mask = batch["completion_mask"]
        labels = batch["input_ids"].masked_fill(mask == 0, -100)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        models: list[Any] = [self.model_wrapped, self.ref_model]
        logprobs = [model(**inputs, labels=labels, fused_lm_head=True).log_probs.double().sum(1) for model in models]
        chosen_B, rejected_B = (logprobs[0] - logprobs[1]).chunk(2)
        margin_B = self.beta * (chosen_B - rejected_B)[:real]
        sums = [-F.logsigmoid(margin_B).sum(), (margin_B > 0).sum(), margin_B.sum(), torch.tensor(real)]
        return torch.stack([value.double().cpu() for value in sums])

    def eval_metrics(self, sums: list[float]) -> dict[str, float]:
        """Held-out loss (sigmoid) in nats, share of pairs with a positive implied margin, and mean implied margin."""
        return {"loss": sums[0] / sums[3], "accuracy": sums[1] / sums[3], "margin": sums[2] / sums[3]}


def make_rows(tokenizer: Any, preferences: Sequence[Preference], limit: int) -> tuple[list[Row], int]:
    """Rows {prompt_ids, chosen_ids, rejected_ids} of the pairs that fit, and how many were too long."""
    decided = [p for p in preferences if not p.tie]
    prompts = [p.prompt for p in decided]
    heads = encode_prompts(tokenizer, prompts)
    chosen = encode_completions(tokenizer, prompts, [p.chosen for p in decided])
    rejected = encode_completions(tokenizer, prompts, [p.rejected for p in decided])
    columns = zip(heads, chosen, rejected, decided, strict=True)
    rows = [{**dict(zip(COLUMNS, ids, strict=True)), "origin": pair.origin} for *ids, pair in columns]
    return keep_fitting(rows, [pair_length(row) for row in rows], limit)


def pair_length(row: Row) -> int:
    """Tokens of the longer side, prompt included."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def run(config: DPOConfig, job: Job) -> dict[str, Any]:
    """Tokenise, train against the frozen reference, evaluate, save."""
    tokenizer = load_tokenizer(config.model)
    model = load_causal(config.model, tokenizer, partitioned=True)
    reference = load_causal(config.reference or config.model, tokenizer, partitioned=True).eval().requires_grad_(False)
    for each in (model, reference):
        switch_off_dropout(each)
    limit = context_length(model.config, config.max_length)
    train_pairs, eval_pairs = load_preference_split(config)
    seen = count_contaminated(job, train_pairs, eval_pairs)
    rows, too_long = make_rows(tokenizer, train_pairs, limit)
    eval_rows, eval_too_long = make_rows(tokenizer, eval_pairs, limit)
    if too_long:
        job.say(f"{too_long} of {len(train_pairs)} pairs are longer than {limit} tokens and were left out")
    arguments = training_arguments(
        Arguments,
        config,
        job,
        max_length=None,
        beta=config.beta,
        loss_type=[config.loss],
        label_smoothing=config.label_smoothing,
        disable_dropout=True,
    )
    datasets = [
        Dataset.from_list([{name: row[name] for name in COLUMNS} for row in part]) for part in (rows, eval_rows)
    ]
    trainer = PolicyTrainer(
        job=job,
        lengths=[pair_length(row) for row in rows],
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=datasets[0],
        eval_dataset=datasets[1] if eval_rows else None,
        processing_class=tokenizer,
    )
    settle_precision(trainer, job)
    summary = train(trainer, job)
    evaluation = trainer.evaluate() if eval_rows else {}
    save_artefact(trainer, job, tokenizer)
    counts = {"pairs": len(rows), "pairs_too_long": too_long, "eval_pairs": len(eval_rows)}
    return {**counts, "eval_pairs_too_long": eval_too_long, **seen, **summary, **evaluation}
