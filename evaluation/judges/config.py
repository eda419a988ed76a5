"""The config of suites that need a judge. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from evaluation.options import BATCH_TOKENS
from launch.addresses import check_url, check_variable
from launch.config import artefact, operational
from launch.ranges import Positive, PositiveInt
from launch.stage import StageConfig


@dataclass(kw_only=True)
class EndpointConfig:
    """A language model behind an OpenAI-compatible API (vLLM, llama.cpp, a service) as the judge; asked at temperature 0."""

    url: str = operational("")
    """Address of the API, such as http://host:8000/v1. Where it is does not belong to the run, `model` does."""
    model: str = ""
    """The model's name there."""
    token_env: str | None = operational(None)
    """The environment variable that holds the API key; it is read from nowhere else, and written nowhere."""
    max_tokens: PositiveInt = 1024
    """Tokens of a reply, its reasons included; one that is cut is no verdict."""
    concurrency: PositiveInt = operational(8)
    """Requests at a time, on each process."""
    timeout_s: Positive = operational(120.0)
    """Seconds to wait for a reply before the question is sent again."""
    attempts: PositiveInt = operational(8)
    """How often a question is sent until the endpoint counts as gone."""


@dataclass(kw_only=True)
class JudgeConfig(StageConfig):
    """Who judges: a reward model, a language model behind an endpoint, or people's recorded preferences."""

    judge: str = artefact("")
    """A reward model that judges, a folder or hub:org/name; best one that no policy here was trained against."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    annotations: str = artefact("")
    """Preferences that people recorded: they judge the pairs of answers that they saw."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of a reward model's matrix products: bf16 is faster on most machines, and makes ties of close rewards."""
    batch_tokens: PositiveInt = operational(BATCH_TOKENS)
    """Tokens in one batch of a reward model, padding included; it changes results by rounding alone."""

    def check_judge(self, needed: bool = True) -> None:
        """ValueError unless there is exactly one judge (none where none is `needed`), with all that it takes."""
        given = [name for name in ("judge", "annotations") if getattr(self, name)]
        given += ["endpoint"] if self.endpoint.url or self.endpoint.model else []
        if len(given) > 1:
            raise ValueError(f"{given[0]}: there is another judge, {given[1]}; keep one of them")
        if needed and not given:
            raise ValueError("judge is missing; add --judge PATH, --endpoint.url URL or --annotations FILE")
        if not needed and given:
            raise ValueError(f"{given[0]}: nothing is left to judge; leave it out")
        if "endpoint" in given:
            for name in ("url", "model"):
                if not getattr(self.endpoint, name):
                    raise ValueError(f"endpoint.{name} is missing; an endpoint needs url and model")
            check_url("endpoint.url", self.endpoint.url)
            check_variable("endpoint.token_env", self.endpoint.token_env)
