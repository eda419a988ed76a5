"""The stage `pretrain`: text in, a `from_pretrained` folder out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from alignment.pretrain.config import PretrainConfig
from alignment.pretrain.corpus import Corpus, read_corpus, write_heldout
from alignment.pretrain.model import build_model, count_parameters
from alignment.pretrain.plan import Plan, derive_plan
from alignment.pretrain.trainer import Metrics, Pretrainer, micro_batches, token_nats
from data.order import global_batch
from launch.runtime import Runtime
from launch.stage import Job

TRIAL_TOKENS = 256  # enough for the products to dominate; where bf16 is emulated it takes eleven times as long


def run(config: PretrainConfig, job: Job) -> dict[str, Any]:
    """Train; the artefact is the model, its tokenizer and the held-out text."""
    corpus = read_corpus(config)
    plan = derive_plan(config, len(corpus.tokenizer), job.runtime.zero_stage)
    job.decide("plan", plan.as_dict)
    model = build_model(plan.shape, config.rope_theta, corpus.tokenizer, config.seed)
    counts = count_parameters(model, corpus.used_vocabulary)
    describe(plan, corpus, counts, job)
    job.settle_precision(make_trial(config, plan, corpus, model, job.runtime))
    trainer = Pretrainer(config, plan, model, corpus.train, corpus.heldout, job.runtime)
    if checkpoint := job.resume():
        trainer.load(checkpoint)
    rates: list[float] = []
    with job.progress(plan.steps, "pretrain", trainer.step) as meter:

        def after_update(step: int, metrics: Metrics) -> None:
            rates.append(metrics["perf/tokens_per_second"])
            if config.eval_steps and step % config.eval_steps == 0 and step < plan.steps:
                metrics |= trainer.evaluate()
            if step % config.log_steps == 0 or step == plan.steps or "heldout/nats_per_token_with_eos" in metrics:
                job.log(step, metrics)
            job.beat(step)
            meter.advance(1, loss=metrics["train/loss"])
            if job.checkpoint_due(step):
                trainer.save(job.checkpoints)
                job.stop_if_requested(step)

        trainer.train(after_update)
    final = trainer.evaluate()
    job.log(plan.steps, final)
    save_artefact(trainer, corpus, job)
    return {
        **final,
        **counts,
        "heldout_tokens": int((corpus.heldout.rows.targets >= 0).sum()),
        "tokens": plan.tokens,
        "epochs": plan.steps * plan.batch_rows / corpus.train.count,
        "tokens_per_second": sorted(rates)[len(rates) // 2] if rates else "n/a",
        "perf/train_seconds": sum(plan.batch_tokens / rate for rate in rates),
    }


def describe(plan: Plan, corpus: Corpus, counts: dict[str, int], job: Job) -> None:
    """Say what the dial came to."""
    s = plan.shape
    job.say(
        f"{counts['parameters'] / 1e6:.2f}M parameters ({counts['parameters_used'] / 1e6:.2f}M without the rows of unused tokens): "
        f"depth {s.layers}, width {s.width}, {s.heads} heads, MLP {s.mlp_width}, vocabulary {s.vocab_size}, context {s.context}"
    )
    job.say(
        f"{corpus.documents} documents, {corpus.train_tokens} training tokens; {plan.tokens} tokens in {plan.steps} steps of "
        f"{plan.batch_tokens}; {plan.optimizer} {plan.matrix_learning_rate:.3g}, adamw {plan.learning_rate:.3g}"
    )


def make_trial(
    config: PretrainConfig, plan: Plan, corpus: Corpus, model: torch.nn.Module, runtime: Runtime
) -> Callable[[], None]:
    """A small forward and backward pass of this model without effect, by whose time the precision is chosen."""
    batch = global_batch(corpus.train, 0, plan.batch_rows, config.seed)
    trial = next(micro_batches(batch, max(1, TRIAL_TOKENS // config.context)))

    def step() -> None:
        with runtime.autocast():
            loss = token_nats(model, trial, runtime.device)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def save_artefact(trainer: Pretrainer, corpus: Corpus, job: Job) -> None:
    """Model, generation config, tokenizer and held-out text, readable without alignkit."""
    trainer.engine.export(trainer.engine.module, job.output_dir)
    if job.runtime.is_main:
        corpus.tokenizer.save_pretrained(job.output_dir)
        write_heldout(corpus.heldout, job.output_dir)
    job.runtime.barrier()
