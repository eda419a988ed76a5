"""SFT on TRL's SFTTrainer, with rows tokenised, masked and audited here."""

from __future__ import annotations

import math
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig as Arguments
from trl import SFTTrainer

from alignment.lora.layers import CAUSAL
from alignment.lora.training import with_adapter
from alignment.models import context_length, load_causal, load_tokenizer, save_artefact
from alignment.sft.config import SFTConfig
from alignment.sft.rows import Row, audit_mask, make_rows
from alignment.trl_stage.config import hold_out, training_arguments
from alignment.trl_stage.trainer import Batch, StageTrainer, settle_precision, train
from data import Pair, load_pairs
from evaluation.adapters import split_adapter
from launch.stage import Job


class CompletionTrainer(StageTrainer, SFTTrainer):
    """SFTTrainer with our checkpoints, and a held-out loss that weighs every token alike."""

    eval_names = ("loss", "tokens")

    def eval_sums(self, batch: Batch, real: int) -> Tensor:
        """Sum of the completion tokens' negative log-probabilities (nats), and their number."""
        out = self.model_wrapped(**batch, use_cache=False, fused_lm_head=True)
        return torch.stack([-out.log_probs[:real].double().sum(), out.label_mask[:real].double().sum()])

    def eval_metrics(self, sums: list[float]) -> dict[str, float]:
        """Loss per completion token in nats, its exponential, and the number of tokens."""
        loss = sums[0] / sums[1]
        return {"loss": loss, "perplexity": math.exp(loss), "tokens": sums[1]}


def load_split(config: SFTConfig) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs: as the config names them, or by `hold_out`."""
    pairs = load_pairs(config.data)
    if config.eval_data:
        return pairs, load_pairs(config.eval_data)
    return hold_out(pairs, config)


def tokenised(rows: list[Row]) -> Dataset:
    """Rows as the data set that TRL takes without preparing it again."""
    return Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])


def load_model(config: SFTConfig, tokenizer: Any) -> Any:
    """The model to train: whole, or with LoRA its base with an adapter, which starts from the model's own if it has one."""
    if config.lora is None:
        return load_causal(config.model, tokenizer, partitioned=True)
    base, start = split_adapter("model", config.model)
    model = load_causal(base, tokenizer, partitioned=True)
    return with_adapter(model, base, config.lora, CAUSAL, config.seed, start)


def run(config: SFTConfig, job: Job) -> dict[str, Any]:
    """Tokenise, audit, train, evaluate, save."""
    tokenizer = load_tokenizer(config.model)
    model = load_model(config, tokenizer)
    limit = context_length(model.config, config.max_length)
    train_pairs, eval_pairs = load_split(config)
    rows, too_long = make_rows(tokenizer, train_pairs, limit)
    eval_rows, eval_too_long = make_rows(tokenizer, eval_pairs, limit)
    if too_long:
        job.say(f"{too_long} of {len(train_pairs)} rows are longer than {limit} tokens and were left out")
    arguments = training_arguments(
        Arguments, config, job, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
    )
    trainer = CompletionTrainer(
        job=job,
        lengths=[len(row["input_ids"]) for row in rows],
        model=model,
        args=arguments,
        train_dataset=tokenised(rows),
        eval_dataset=tokenised(eval_rows) if eval_rows else None,
        processing_class=tokenizer,
    )
    fraction = audit_mask(tokenizer, rows, trainer.data_collator)
    settle_precision(trainer, job)
    summary = train(trainer, job)
    evaluation = trainer.evaluate() if eval_rows else {}
    save_artefact(trainer, job, tokenizer)
    counts = {"rows": len(rows), "rows_too_long": too_long, "eval_rows": len(eval_rows)}
    return {
        **counts,
        "eval_rows_too_long": eval_too_long,
        "trained_token_fraction": fraction,
        **summary,
        **evaluation,
    }
