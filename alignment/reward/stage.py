"""The reward model's stage: train, normalise in the weights, measure what is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from trl import RewardConfig as Arguments

from alignment.lora.layers import CLASSIFIER
from alignment.lora.training import with_adapter
from alignment.models import context_length, load_tokenizer, save_artefact
from alignment.reward.config import RewardConfig
from alignment.reward.head import load_scorer
from alignment.reward.model import RewardModel
from alignment.reward.normalise import Array, HeadUpdate, normalise_head
from alignment.reward.report import heldout_disturbance, heldout_report
from alignment.reward.trainer import (
    SIDES,
    PairCollator,
    PairTrainer,
    Row,
    make_rows,
    pair_length,
    tokenised,
)
from alignment.trl_stage.config import training_arguments
from alignment.trl_stage.preferences import count_contaminated, load_preference_split
from alignment.trl_stage.trainer import settle_precision, train
from data import plain_text
from data.completions import load_completions
from evaluation.adapters import is_adapter, split_adapter, write_head
from evaluation.batches import plan_batches
from evaluation.scoring import inference, right_pad
from launch.errors import UserError
from launch.files import sha256_text
from launch.stage import Job

CALIBRATION_TEXTS = 2048  # mean and deviation of the rewards to about 2 %
BATCH_TOKENS = 8192


def run(config: RewardConfig, job: Job) -> dict[str, Any]:
    """Train, save, normalise, evaluate."""
    tokenizer = load_tokenizer(config.model)
    model = load_model(config, tokenizer)
    limit = context_length(model.config, config.max_length)
    train_pairs, eval_pairs = load_preference_split(config)
    seen = count_contaminated(job, train_pairs, eval_pairs)
    rows, too_long = make_rows(tokenizer, train_pairs, limit, config.margin_per_strength)
    eval_rows, eval_too_long = make_rows(tokenizer, eval_pairs, limit, config.margin_per_strength)
    if too_long:
        job.say(f"{too_long} of {len(train_pairs)} pairs are longer than {limit} tokens and were left out")
    arguments = training_arguments(
        Arguments, config, job, max_length=None, remove_unused_columns=False, disable_dropout=True
    )
    trainer = PairTrainer(
        job=job,
        lengths=[pair_length(row) for row in rows],
        centering=config.centering,
        model=model,
        args=arguments,
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=tokenised(rows),
        eval_dataset=tokenised(eval_rows) if eval_rows else None,
        processing_class=tokenizer,
    )
    settle_precision(trainer, job)
    summary = train(trainer, job)
    save_artefact(trainer, job, tokenizer)
    del trainer, model
    counts = {"pairs": len(rows), "pairs_too_long": too_long, "eval_pairs_too_long": eval_too_long}
    return {**counts, **seen, **summary, **finish(config, job, rows, eval_rows)}


def load_model(config: RewardConfig, tokenizer: Any) -> Any:
    """The scorer to train: whole, or with LoRA its base with an adapter, which starts from the model's own if it has one."""
    if config.lora is None:
        return load_scorer(config.model, tokenizer, config.seed)
    base, start = split_adapter("model", config.model)
    model = load_scorer(base, tokenizer, config.seed)
    return with_adapter(model, base, config.lora, CLASSIFIER, config.seed, start)


def finish(config: RewardConfig, job: Job, rows: Sequence[Row], eval_rows: Sequence[Row]) -> dict[str, Any]:
    """Normalise the saved model in place, and measure it as it is shipped on the held-out pairs."""
    scorer = RewardModel.from_pretrained(str(job.output_dir), device=job.runtime.device)
    decided = [row for row in eval_rows if not row["tie"]]
    chosen_ND, rejected_ND = (last_features(scorer, [row[f"{s}_ids"] for row in decided], job) for s in SIDES)
    gap_ND = chosen_ND - rejected_ND
    head_D = scorer.model.score.weight.detach()[0].double().cpu().numpy()
    found: dict[str, Any] = {"eval_ties": len(eval_rows) - len(decided)}
    if config.normalise:
        update = _normalise(config, job, scorer, rows, head_D)
        found |= {**update.summary(), **heldout_disturbance(update, gap_ND, head_D)}
        head_D = update.weight_D * update.scale  # back to logits, on which the pairs were fitted
    if decided:
        lengths = [len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in decided]
        prompts = [plain_text(row["pair"].prompt) for row in decided]
        found |= heldout_report(gap_ND @ head_D, lengths, prompts, config.seed)
    return found


def _normalise(config: RewardConfig, job: Job, scorer: RewardModel, rows: Sequence[Row], head_D: Array) -> HeadUpdate:
    """Write the normalised head into the artefact."""
    features_ND = last_features(scorer, calibration_ids(config, scorer, rows), job)
    try:
        update = normalise_head(features_ND, head_D)
    except ValueError as error:
        raise UserError(f"normalise: {error}, there is no scale to set; train longer, or --normalise false") from None
    with torch.no_grad():
        scorer.model.score.weight.copy_(torch.from_numpy(update.weight_D)[None])
    if job.runtime.is_main:
        if is_adapter(str(job.output_dir)):
            write_head(job.output_dir, scorer.model.score.weight)
        else:
            scorer.model.save_pretrained(job.output_dir)
    job.runtime.barrier()
    return update


def calibration_ids(config: RewardConfig, scorer: RewardModel, rows: Sequence[Row]) -> list[list[int]]:
    """Token ids of the texts to normalise on: completions of the SFT model, or both sides of the training pairs.

    Of more than CALIBRATION_TEXTS the first by content hash, which is a fixed random sample.
    """
    if config.normalise_on:
        completions = load_completions(config.normalise_on)
        ended = [c.finished for c in completions]
        texts = scorer.encode([c.prompt for c in completions], [c.text for c in completions], ended)
    else:
        texts = [row[f"{side}_ids"] for row in rows for side in SIDES]
    return sorted(texts, key=lambda ids: sha256_text(str(ids)))[:CALIBRATION_TEXTS]


def last_features(scorer: RewardModel, sequences: Sequence[Sequence[int]], job: Job) -> Array:
    """The hidden state that the head reads, for each sequence: float64 (N, D). The ranks share the work."""
    runtime, model = job.runtime, scorer.model
    mine = list(sequences[runtime.rank :: runtime.world])
    features_ND = np.zeros((len(mine), model.config.get_text_config().hidden_size))
    with inference(model) as device:
        for batch in plan_batches([len(ids) for ids in mine], BATCH_TOKENS):
            inputs = right_pad([mine[i] for i in batch], model.config.get_text_config().pad_token_id, device)
            hidden_BSD = model.base_model(**inputs, use_cache=False).last_hidden_state
            last_B = inputs["attention_mask"].sum(1) - 1
            features_ND[batch] = hidden_BSD[torch.arange(len(batch)), last_B].double().cpu().numpy()
            job.beat(0)
    whole_ND = np.zeros((len(sequences), features_ND.shape[1]))
    for rank, part_ND in enumerate(runtime.gather_objects(features_ND)):
        whole_ND[rank :: runtime.world] = part_ND
    return whole_ND
