"""The stage `ppo`: load the roles, train, save policy and critic as plain Hugging Face folders."""

from __future__ import annotations

from typing import Any

from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_roles
from alignment.ppo.trainer import Metrics, PPOTrainer
from alignment.prompts import fitting_prompts, load_prompt_rows, prompt_limit
from launch.files import read_jsonl_log
from launch.runtime import choose_precision
from launch.stage import Job, Stage


def run(config: PPOConfig, job: Job) -> dict[str, Any]:
    """Train; the artefact is the policy, with the critic in `critic/`."""
    roles = load_roles(config.policy, config.critic, config.reference, config.reward, job.runtime.device)
    limit = prompt_limit(roles.policy.config, config.max_prompt_tokens, config.max_new_tokens)
    rows, too_long = fitting_prompts(roles.tokenizer, load_prompt_rows(config.prompts), limit)
    prompts = [row["prompt_ids"] for row in rows]
    job.say(f"{len(prompts)} prompts, {too_long} longer than {limit} tokens left out")
    trainer = PPOTrainer(config, roles, prompts, job.runtime)
    settle_precision(trainer, job)
    if checkpoint := job.resume():
        trainer.load(checkpoint)
    with job.progress(config.updates, "ppo", trainer.update_number) as meter:

        def after_update(number: int, metrics: Metrics) -> None:
            job.log(number, metrics)
            job.beat(number)
            meter.advance(1, reward=metrics["reward/score"], kl=metrics["kl/k1"])
            if job.checkpoint_due(number):
                trainer.save(job.checkpoints)
                job.stop_if_requested(number)

        trainer.train(after_update)
    save_artefact(trainer, job)
    rows = read_jsonl_log(job.output_dir / "metrics.jsonl") if job.runtime.is_main else []
    last = {k: v for k, v in (rows[-1] if rows else {}).items() if k != "step" and not k.startswith("perf/")}
    return {**last, "prompts": len(prompts), "prompts_too_long": too_long, "updates": trainer.update_number}


def settle_precision(trainer: PPOTrainer, job: Job) -> None:
    """On the CPU, measure fp32 against bf16 autocast where the config leaves it open; a resume keeps the finding."""
    runtime = job.runtime
    if trainer.config.precision == "auto" and runtime.device.type == "cpu" and not runtime.uses_deepspeed:
        runtime.precision = job.decide("precision", lambda: choose_precision(runtime, trainer.trial_step, repeats=2))
        job.say(f"precision {runtime.precision}")


def save_artefact(trainer: PPOTrainer, job: Job) -> None:
    """Policy at the top of the folder, critic below it, each loadable by plain transformers."""
    trainer.engine.export(trainer.engine.module.policy, job.output_dir)
    trainer.engine.export(trainer.engine.module.critic, job.output_dir / "critic")
    if job.runtime.is_main:
        for folder in (job.output_dir, job.output_dir / "critic"):
            trainer.roles.tokenizer.save_pretrained(folder)


STAGE = Stage("ppo", PPOConfig, run)
