"""A suite's judge from its config, and its verdicts on duels: asked in both orders where order may sway it, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from data import load_preferences
from evaluation.artefacts import describe_judge, load_reward_model
from evaluation.judges.config import JudgeConfig
from evaluation.judges.duels import Duel, Judge, Verdict, Verdicts, gather_verdicts
from evaluation.judges.endpoint import EndpointJudge, Sampling
from evaluation.judges.people import People
from evaluation.judges.reward_model import RewardModelJudge
from evaluation.sample_log import score_samples
from launch.addresses import read_secret
from launch.exchange import Endpoint
from launch.stage import Job

LONGEST_REPLY = 80


def build_judge(config: JudgeConfig, job: Job) -> Judge:
    """The judge that the config names; `check_judge` has seen to it that there is one."""
    if config.judge:
        model, tokenizer = load_reward_model("judge", config.judge, job.runtime.device)
        record = describe_judge("judge", config.judge)
        return RewardModelJudge(model, tokenizer, record, config.batch_tokens, job.watchdog.alive)
    if config.annotations:
        return People(load_preferences(config.annotations), describe_judge("annotations", config.annotations))
    wanted = config.endpoint
    endpoint = Endpoint(wanted.url, wanted.timeout_s, read_secret("endpoint.token_env", wanted.token_env))
    sampling = Sampling(wanted.model, wanted.max_tokens, wanted.concurrency, wanted.attempts)
    return EndpointJudge(endpoint, sampling, config.seed, job.say, job.watchdog.alive)


def tell_missing(name: str, verdicts: Verdicts, said: Sequence[Verdict]) -> str:
    """How many duels a judge left without a verdict, and why not in the first; empty when each has one."""
    missing = verdicts.decided_N.size - int(verdicts.decided_N.sum())
    if not missing:
        return ""
    first = next(v for words in said for v in words.values() if v["vote"] is None)
    end = f", its reply ends {first['reply'][-LONGEST_REPLY:]!a}" if first.get("reply") else ""
    return f"{name} gave no verdict on {missing} of {verdicts.decided_N.size} duels (the first: {first['why']}{end})"


def judge_duels(
    job: Job, judge: Judge, duels: Sequence[Duel], name: str = "verdicts"
) -> tuple[Verdicts, list[Verdict]]:
    """The judge's votes, and of each duel the row of what it said: `verdict`, and `swapped` for the other order.

    Every verdict is written down as it is given (evaluation/sample_log.py), so that none is asked for twice: not after a
    kill, and not after an endpoint went away.
    """
    judge.check(duels)
    both = [*duels, *(duel.swapped for duel in duels)] if judge.sees_order else list(duels)
    computes_here = isinstance(judge, RewardModelJudge)
    compute: Callable[[list[Duel]], Iterable[Any]] = judge.judge
    if isinstance(judge, EndpointJudge):
        compute = judge.judge_each
    with job.runtime.autocast() if computes_here else nullcontext():
        rows = score_samples(
            job,
            name,
            both,
            compute,
            content=lambda duel: duel.content,
            size=judge.size,
            budget=judge.budget,
            alone=isinstance(judge, EndpointJudge),
            settings=judge.settings() | ({"precision": job.runtime.precision} if computes_here else {}),
        )
    n = len(duels)
    if not judge.sees_order:
        return gather_verdicts(rows, None), [{"verdict": row} for row in rows]
    pairs = zip(rows[:n], rows[n:], strict=True)
    return gather_verdicts(rows[:n], rows[n:]), [{"verdict": one, "swapped": other} for one, other in pairs]
