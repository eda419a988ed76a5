"""The stage `ppo`: load the roles, train, save policy and critic as plain Hugging Face folders."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_roles
from alignment.ppo.trainer import Metrics, PPOTrainer
from alignment.prompts import fitting_prompts, load_prompt_rows, prompt_limit
from alignment.reward.sources.build import build_source
from launch.files import read_jsonl_log
from launch.runtime import choose_precision
from launch.stage import Job, Stage, Stopped


def run(config: PPOConfig, job: Job) -> dict[str, Any]:
    """Train; the artefact is the policy, with the critic in `critic/`."""
    trainer, counts = make_trainer(config, job)
    settle_precision(trainer, job)
    if checkpoint := job.resume():
        trainer.load(checkpoint)
    with job.progress(trainer.updates, "ppo", trainer.update_number) as meter:

        def after_update(number: int, metrics: Metrics) -> None:
            job.log(number, metrics)
            job.beat(number)
            meter.advance(1, reward=metrics["reward/score"], kl=metrics["kl/k1"])
            if job.checkpoint_due(number):
                trainer.save(job.checkpoints)
                job.stop_if_requested(number)

        def while_waiting() -> None:
            """Asked to stop while a source of reward is away: the update that waits for it is lost, nothing before it."""
            job.stop_if_requested(trainer.update_number, lambda: trainer.save(job.checkpoints))

        trainer.sink, trainer.alive, trainer.while_waiting = after_update, job.watchdog.alive, while_waiting
        trainer.train()
    save_artefact(trainer, job)
    rows = read_jsonl_log(job.output_dir / "metrics.jsonl") if job.runtime.is_main else []
    last = {k: v for k, v in (rows[-1] if rows else {}).items() if k != "step" and not k.startswith("perf/")}
    return {**last, **counts, "updates": trainer.update_number}


def make_trainer(config: PPOConfig, job: Job) -> tuple[PPOTrainer, dict[str, int]]:
    """The trainer of a config, and how many prompts there are."""
    roles = load_roles(config)
    if config.replay:
        trainer = PPOTrainer(config, roles, None, [], job.runtime)
        job.say(f"updates {trainer.update_number + 1} to {trainer.updates} from the rollouts of {config.replay}")
        return trainer, {}
    limit = prompt_limit(roles.policy.config, config.max_prompt_tokens, config.max_new_tokens)
    rows, too_long = fitting_prompts(roles.tokenizer, load_prompt_rows(config.prompts), limit)
    job.say(f"{len(rows)} prompts, {too_long} longer than {limit} tokens left out")
    source = build_source(
        config.sources,
        job.runtime.device,
        roles.tokenizer,
        config.seed,
        make_beat(job),
        lambda line: say_anywhere(job, line),
        batch_tokens=config.forward_batch_size * (limit + config.max_new_tokens),
    )
    trainer = PPOTrainer(config, roles, source, rows, job.runtime)
    return trainer, {"prompts": len(rows), "prompts_too_long": too_long}


def say_anywhere(job: Job, line: str) -> None:
    """A line of a source of reward for the user: any rank may be the one that waits for a service."""
    if job.runtime.is_main:
        job.say(line)
    else:
        print(f"[ppo] rank {job.runtime.rank}: {line}", file=sys.stderr, flush=True)


def make_beat(job: Job) -> Callable[[], None]:
    """What a source of reward calls while it works: this rank lives. It ends the work of a job that was stopped."""

    def beat() -> None:
        if job.stopped:
            raise Stopped
        job.watchdog.alive()

    return beat


def settle_precision(trainer: PPOTrainer, job: Job) -> None:
    """On the CPU, measure fp32 against bf16 autocast where the config leaves it open; a resume keeps the finding."""
    runtime = job.runtime
    if trainer.config.precision == "auto" and runtime.device.type == "cpu" and not runtime.uses_deepspeed:
        runtime.precision = job.decide("precision", lambda: choose_precision(runtime, trainer.trial_step, repeats=2))
        job.say(f"precision {runtime.precision}")


def save_artefact(trainer: PPOTrainer, job: Job) -> None:
    """Policy at the top of the folder, critic below it, each loadable by plain transformers."""
    module = trainer.engine.module
    trainer.engine.export(module.policy, job.output_dir)
    folders = [job.output_dir]
    if module.critic is not None:
        trainer.engine.export(module.critic, job.output_dir / "critic")
        folders.append(job.output_dir / "critic")
    if job.runtime.is_main:
        for folder in folders:
            trainer.roles.tokenizer.save_pretrained(folder)


STAGE = Stage("ppo", PPOConfig, run)
