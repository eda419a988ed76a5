"""The KL divergence of a policy from its reference model, estimated on the policy's completions, and its budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.completions import Completion
from evaluation.artefacts import describe_subject, display_name, load_language_model, provenance_of
from evaluation.judges.reward_model import UNIT_BATCHES
from evaluation.preferences.divergence import divergences
from evaluation.sample_log import score_samples
from evaluation.schema import Metric, metric
from evaluation.scoring import completion_logprobs
from evaluation.statistics import mean_of, repeated
from evaluation.suites.reward_config import RewardEvaluationConfig
from launch.errors import UserError
from launch.stage import Job


def sampling_temperature(config: RewardEvaluationConfig) -> float | None:
    """The temperature that the completions were drawn at: from the config, else their provenance, else unknown."""
    if config.temperature is not None:
        return config.temperature
    return provenance_of(config.completions).get("config", {}).get("temperature")


def estimate_kl(
    config: RewardEvaluationConfig, job: Job, rows: Sequence[Completion], temperature: float | None
) -> tuple[np.ndarray, np.ndarray, list[Metric]]:
    """k1 and k3 of each completion (n,), and their metrics."""
    if not temperature:
        raise UserError(
            f"temperature: KL divergence needs sampled completions, and those of {config.completions} were drawn at "
            f"temperature {temperature}; generate with a temperature above 0, or give --temperature"
        )
    policy = _logprobs("policy", config.policy, config, job, rows, temperature)
    reference_model = _logprobs("reference", config.reference, config, job, rows, temperature)
    k1, k3 = divergences(policy, reference_model)
    groups = repeated([row.prompt_text for row in rows])
    text = "KL divergence of the policy from {}, summed over a completion, at the sampling temperature; estimator {}"
    found = [
        metric(
            f"kl_{name}",
            mean_of(values, groups),
            text.format(display_name(config.reference), name),
            higher_is_better=None,
            unit="nats",
            budget=config.kl_budget,
        )
        for name, values in (("k1", k1), ("k3", k3))
    ]
    return k1, k3, found


def _logprobs(
    field: str, source: str, config: RewardEvaluationConfig, job: Job, rows: Sequence[Completion], temperature: float
) -> list[np.ndarray]:
    """Log-probabilities of each completion's tokens under one model."""
    model, _ = load_language_model(field, source, job.runtime.device)

    def compute(part: list[Completion]) -> list[list[float]]:
        ids = [r.prompt_ids for r in part], [r.completion_ids for r in part]
        found = completion_logprobs(model, *ids, temperature, config.batch_tokens, lambda n: job.watchdog.alive())
        return [values.tolist() for values in found]

    with job.runtime.autocast():
        rows_of_values = score_samples(
            job,
            field,
            rows,
            compute,
            content=lambda r: [r.prompt_ids, r.completion_ids],
            size=lambda r: len(r.prompt_ids) + len(r.completion_ids),
            budget=UNIT_BATCHES * config.batch_tokens,
            settings={
                "model": describe_subject(field, source, "language model").sha256,
                "temperature": temperature,
                "precision": job.runtime.precision,
            },
        )
    return [np.array(values) for values in rows_of_values]


def over_budget(metrics: Sequence[Metric], budget: float | None) -> list[str]:
    """A sentence when the divergence is not clearly within the budget."""
    k1 = next((m for m in metrics if m.name == "kl_k1"), None)
    if budget is None or k1 is None or k1.ci_high is None or k1.ci_high <= budget:
        return []
    return [
        f"The KL divergence of {k1.value:.2f} [{k1.ci_low:.2f}, {k1.ci_high:.2f}] nats is not within the budget of {budget:g}."
    ]
