"""The stage `ppo`: load the roles, train, save policy and critic as plain Hugging Face folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from alignment.generation import VLLMEngine
from alignment.ppo.best import BestPolicy
from alignment.ppo.config import PPOConfig
from alignment.ppo.evaluation import load_held_out, sample_rows
from alignment.ppo.guard import Guard
from alignment.ppo.models import load_roles
from alignment.ppo.rewards import build_rewards
from alignment.ppo.trainer import Metrics, PPOTrainer
from alignment.prompts import fitting_prompts, load_prompt_rows, prompt_limit
from launch.addresses import read_secret
from launch.files import read_jsonl_log, write_atomic
from launch.native import library
from launch.runtime import Runtime
from launch.stage import Job, Stopped


def run(config: PPOConfig, job: Job) -> dict[str, Any]:
    """Train; the artefact is the policy, with the critic in `critic/`, and the best policy in `best/`."""
    trainer, counts = make_trainer(config, job)
    if ptx := trainer.learner.ptx:
        job.say(f"ptx_data: {len(ptx.rows)} rows, {ptx.left_out} longer than {trainer.room} tokens (or empty) left out")
    job.settle_precision(trainer.learner.trial_step)
    job.say(describe_run(job.runtime))
    guard = Guard(trainer, job.checkpoints, job.say)
    budget = config.evaluation.kl_budget
    best = BestPolicy(job.output_dir / "best", budget, job.runtime, lambda folder: save_artefact(trainer, folder))
    if checkpoint := job.resume():
        trainer.load(checkpoint)
        write_records(trainer, job)
        guard.resume()
    with job.progress(trainer.updates, "ppo", trainer.update_number) as meter:

        def after_update(number: int, metrics: Metrics) -> None:
            job.log(number, metrics)
            job.beat(number)
            if number > 0:
                meter.advance(1, reward=metrics["reward/score"], kl=metrics["kl/k1"])
            if trainer.evaluation and trainer.evaluation.update == number:
                best.offer(trainer.evaluation, trainer.history.start)
            try:
                guard.act()
            finally:
                write_records(trainer, job)
            meter.advance(trainer.update_number - number)  # after a roll-back
            keep(trainer, job, guard)

        def while_waiting(can_save: bool) -> None:
            """Asked to stop while a source of reward is away: the update that waits for it is lost, nothing before it."""
            if can_save:
                job.stop_if_requested(trainer.update_number, lambda: trainer.save(job.checkpoints))
            else:
                job.stop_if_requested(job.checkpoints.last_step)

        def note(text: str) -> None:
            """A batch was sampled, or a pass made: an update may take longer than the watchdog waits."""
            job.watchdog.alive()
            meter.note(text)

        trainer.sink, trainer.alive, trainer.while_waiting = after_update, job.watchdog.alive, while_waiting
        trainer.tell = note
        trainer.begin()
        if config.monitors.roll_back and trainer.update_number == 0 and not trainer.history.rows:
            keep(trainer, job, guard)
        trainer.train()
    save_artefact(trainer, job.output_dir)
    if trainer.served and job.runtime.is_main:
        trainer.served.remove_weights()
    rows = read_jsonl_log(job.output_dir / "metrics.jsonl") if job.runtime.is_main else []
    last = {k: v for k, v in (rows[-1] if rows else {}).items() if k != "step" and not k.startswith("perf/")}
    told = len(trainer.monitors.told)
    chosen = best.summary() if config.evaluation.every else {}
    return {**last, **counts, **chosen, "alarms": told, "updates": trainer.update_number}


def keep(trainer: PPOTrainer, job: Job, guard: Guard) -> None:
    """Save a checkpoint if one is due, and end here if the job was asked to stop."""
    anchor, due = guard.checkpoint_due(trainer.update_number), job.checkpoint_due(trainer.update_number)
    if anchor or due:
        trainer.save(job.checkpoints)
        job.stop_if_requested(trainer.update_number)


def write_records(trainer: PPOTrainer, job: Job) -> None:
    """evaluations.jsonl and alarms.jsonl are what the trainer's state says: after a resume they are cut back by this."""
    if not job.runtime.is_main:
        return
    files: dict[str, Iterable[dict[str, Any]]] = {
        "evaluations.jsonl": trainer.history.rows,
        "alarms.jsonl": trainer.monitors.told,
    }
    if trainer.evaluation is not None:
        files["evaluation_samples.jsonl"] = sample_rows(trainer.evaluation, trainer.history.start)
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        if lines or (job.output_dir / name).exists():
            write_atomic(job.output_dir / name, "".join(lines))


def describe_run(runtime: Runtime) -> str:
    """What decides about the last bits of a run's numbers."""
    told = f"precision {runtime.precision}, {runtime.world} process{'es' if runtime.world > 1 else ''}"
    if runtime.device.type != "cpu":
        return told
    return f"{told}, {'compiled kernels' if library() else 'no compiled kernels'}"


def make_trainer(config: PPOConfig, job: Job) -> tuple[PPOTrainer, dict[str, int]]:
    """The trainer of a config, and how many prompts there are."""
    served = connect_servers(config, job)
    roles = load_roles(config)
    if config.replay:
        trainer = PPOTrainer(config, roles, None, [], job.runtime)
        job.say(f"updates {trainer.update_number + 1} to {trainer.updates} from the rollouts of {config.replay}")
        assert trainer.replay is not None
        trainer.replay.say = job.say
        if trainer.replay.warning:
            job.say(trainer.replay.warning)
        return trainer, {}
    limit = prompt_limit(roles.policy.config, config.max_prompt_tokens, config.max_new_tokens)
    rows, too_long = fitting_prompts(roles.tokenizer, load_prompt_rows(config.prompts), limit)
    job.say(f"{len(rows)} prompts, {too_long} longer than {limit} tokens left out")
    if (wanted := config.batch_size // config.samples_per_prompt) > len(rows):
        job.say(
            f"batch_size: a rollout takes {wanted} prompts, there are {len(rows)}: each is used about "
            f"{wanted / len(rows):.3g} times in every rollout"
        )
    counts = {"prompts": len(rows), "prompts_too_long": too_long}
    batch_tokens = config.forward_batch_size * (limit + config.max_new_tokens)
    build = partial(
        build_rewards, config, roles, job.runtime.device, make_beat(job), partial(say_anywhere, job), batch_tokens
    )
    source, held_out = build(), None
    if config.evaluation.every:
        held_out = load_held_out(
            config.evaluation, roles.tokenizer, limit, rows, lambda judge: build(sources=judge), job.say
        )
        counts["prompts_held_out"] = len(held_out.rows)
    return PPOTrainer(config, roles, source, rows, job.runtime, held_out=held_out, served=served), counts


def connect_servers(config: PPOConfig, job: Job) -> VLLMEngine | None:
    """The servers that sample, if the config has any: asked before anything else is loaded, so that a wrong one is told at once."""
    options = config.vllm
    if options is None or config.replay:
        return None
    served = VLLMEngine(
        options.url,
        options.weights_folder,
        config.seed,
        options.concurrency,
        options.timeout_s,
        read_secret("vllm.token_env", options.token_env),
        make_beat(job),
        partial(say_anywhere, job),
    )
    for url, server in zip(options.url, served.connect(), strict=True):
        job.say(f"rollouts by vLLM {server.version} at {url} ({server.model}, {server.context} tokens)")
    job.say("sampling on servers is not repeatable to the bit: neither is a run that was resumed")
    return served


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


def save_artefact(trainer: PPOTrainer, folder: Path) -> None:
    """Policy at the top of the folder, critic below it (and adapters below each), all loadable by plain transformers."""
    folders = trainer.roles.save(trainer.engine, folder)
    if trainer.runtime.is_main:
        for each in folders:
            trainer.roles.tokenizer.save_pretrained(each)
