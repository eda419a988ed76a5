"""One vLLM server: what it is asked, and how its answers are checked before a token of them is learned from.

Written against the source of vLLM 0.33.0. A server that was started as docs/generation.md says has, besides the
completions of OpenAI's API, the addresses of its development mode: `/server_info`, `/collective_rpc`,
`/reset_prefix_cache`, `/update_weight_version` and `/weight_info`. Each completion tells under which version of the
weights its tokens were sampled; a server that was started again has version `default`. So no token of other weights
is ever taken for one of ours, whenever the server was replaced.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.generation.sampling import Completion, Sampling
from launch.errors import UserError
from launch.exchange import Away, Endpoint, Refused

LOGPROBS_MODE = "processed_logprobs"
STARTED = "default"
"""The version of a server that was given no weights since it was started."""
LOADED = " (cache of other weights)"
"""After a version: its weights are loaded, keys and values of those before may still be cached."""


class OtherWeights(Away):
    """The server sampled with weights that are not those it was given last."""


@dataclass(frozen=True)
class ServedWeights:
    """Weights that servers are told to load."""

    folder: Path
    version: str
    vocab_size: int


@dataclass(frozen=True)
class Description:
    """What a server says of itself."""

    model: str
    """The name that requests call it by."""
    context: int
    """Longest prompt with its completion, in tokens."""
    version: str
    """Of vLLM."""


class Server:
    """Calls from many threads. Away means: later; UserError: not without the user."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.url = endpoint, endpoint.url
        self._loading = threading.Lock()

    # ------------------------------------------------------------------------------------ what it is

    def describe(self) -> Description:
        """UserError when it would not sample as PPO needs it, with the option to start it with."""
        mode: Any = self._get("/server_info?config_format=json")
        for key in ("vllm_config", "model_config", "logprobs_mode"):
            mode = mode.get(key) if isinstance(mode, dict) else None
        if mode != LOGPROBS_MODE:
            raise UserError(
                f"vllm.url: {self.url}: its log-probabilities are {mode}, PPO needs those at the sampling temperature; "
                f"start the server with --logprobs-mode {LOGPROBS_MODE}"
            )
        models, about = self._get("/v1/models").get("data"), self._get("/version")
        if not isinstance(models, list) or not models or not isinstance(models[0].get("max_model_len"), int):
            raise self._nonsense("/v1/models", models)
        return Description(str(models[0]["id"]), models[0]["max_model_len"], str(about.get("version")))

    # ------------------------------------------------------------------------------------ its weights

    def load(self, weights: ServedWeights) -> bool:
        """Have these weights loaded, and whether that was needed. One thread does it, the others wait for it.

        The version is set last: what is sampled before is not taken for a sample of these weights.
        """
        with self._loading:
            present = self._get("/weight_info").get("weight_version")
            if present == weights.version:
                return False
            if present == STARTED:
                self.describe()  # perhaps with other options than before
            if present != weights.version + LOADED:
                kwargs = {"weights_path": str(weights.folder)}
                timeout_s = self.endpoint.timeout_s
                self._post("/collective_rpc", {"method": "reload_weights", "kwargs": kwargs, "timeout": timeout_s})
                self._post("/update_weight_version", {"new_version": weights.version + LOADED})
            if self._post("/reset_prefix_cache", {}).get("success") is not True:
                raise Away(f"{self.url} still answers requests to other weights")
            self._post("/update_weight_version", {"new_version": weights.version})
            return True

    # ------------------------------------------------------------------------------------ its samples

    def complete(
        self, model: str, prompt: Sequence[int], sampling: Sampling, seed: int, weights: ServedWeights
    ) -> Completion:
        """One completion, sampled with these weights; OtherWeights when it was sampled with others."""
        answer = self._post("/v1/completions", request_of(model, prompt, sampling, seed))
        return read_completion(answer, sampling, weights, f"vllm.url: {self.url}")

    # ------------------------------------------------------------------------------------ HTTP

    def _get(self, path: str) -> dict[str, Any]:
        try:
            return self._read(path, self.endpoint.at(path).get())
        except Refused as error:
            raise self._missing(path, error) from None

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._read(path, self.endpoint.at(path).post(json.dumps(body).encode()))
        except Refused as error:
            raise self._missing(path, error) from None

    def _missing(self, path: str, error: Refused) -> UserError:
        if error.status != 404 or path.startswith("/v1/"):
            return UserError(f"vllm.url: {error}")
        return UserError(
            f"vllm.url: {self.url} has no {path.partition('?')[0]}; start vLLM (0.33 or later) with "
            "VLLM_SERVER_DEV_MODE=1 in its environment"
        )

    def _read(self, path: str, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content or b"{}")
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._nonsense(path, content)
        return answer

    def _nonsense(self, path: str, what: Any) -> UserError:
        return UserError(f"vllm.url: {self.url}{path} answered {what!r:.80}; is this a vLLM server?")


# ---------------------------------------------------------------------------------------------- requests and answers


def request_of(model: str, prompt: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
    """The body of POST /v1/completions for one completion by temperature alone.

    Every number that the server would else take from the model's generation_config is given. `ignore_eos` with our EOS
    as the one stop token: the server would else stop at any EOS that the generation_config names, too.
    """
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "seed": seed,
        "n": 1,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": [sampling.eos_id],
        "logprobs": 0,  # of the sampled token, and of no other
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "return_weight_versions": True,
    }


def read_completion(answer: dict[str, Any], sampling: Sampling, weights: ServedWeights, source: str) -> Completion:
    """The completion in an answer. UserError, which begins with `source`, for one that cannot be learned from."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise UserError(f"{source}: the answer has no single choice: {answer!r:.80}; is this a vLLM server?")
    choice = choices[0]
    if choice.get("finish_reason") == "abort":
        raise Away("the request was aborted")
    tokens = _tokens_of(choice, weights.vocab_size, source)
    logprobs = _logprobs_of(choice, len(tokens), source)
    _check_version(choice, weights, source)
    _check_end(tokens, choice, sampling, source)
    return Completion(tokens, logprobs)


def _tokens_of(choice: dict[str, Any], vocab_size: int, source: str) -> list[int]:
    tokens = choice.get("token_ids")
    if not isinstance(tokens, list):
        raise UserError(f"{source}: the answer has no token_ids; use vLLM 0.33 or later")
    if not tokens:
        raise UserError(f"{source}: the completion is empty; a completion has at least the EOS")
    wrong = [token for token in tokens if not isinstance(token, int) or not 0 <= token < vocab_size]
    if wrong:
        raise UserError(
            f"{source}: token {wrong[0]!r} is not in the policy's vocabulary of {vocab_size}; start the server with the "
            "policy's own model"
        )
    return tokens


def _logprobs_of(choice: dict[str, Any], count: int, source: str) -> list[float]:
    held = choice.get("logprobs")
    values = held.get("token_logprobs") if isinstance(held, dict) else None
    if not isinstance(values, list):
        raise UserError(f"{source}: the answer has no token_logprobs; is this a vLLM server?")
    if len(values) != count:
        raise UserError(f"{source}: the answer has {len(values)} log-probabilities for {count} tokens")
    wrong = [v for v in values if not isinstance(v, int | float) or not math.isfinite(v) or v > 1e-3]
    if wrong:
        raise UserError(
            f"{source}: {wrong[0]!r} is no log-probability; start the server with --logprobs-mode {LOGPROBS_MODE}"
        )
    return [float(v) for v in values]


def _check_version(choice: dict[str, Any], weights: ServedWeights, source: str) -> None:
    spans = choice.get("weight_versions")
    if not isinstance(spans, list) or not all(isinstance(span, dict) for span in spans):
        raise UserError(f"{source}: the answer does not tell its weight_versions; use vLLM 0.33 or later")
    found = sorted({str(span.get("version")) for span in spans})
    if found != [weights.version]:
        raise OtherWeights(f"sampled with the weights {', '.join(found)} instead of {weights.version}")


def _check_end(tokens: list[int], choice: dict[str, Any], sampling: Sampling, source: str) -> None:
    """A completion ends with its only EOS, or has max_new_tokens."""
    reason, wanted = choice.get("finish_reason"), sampling.max_new_tokens
    if len(tokens) > wanted:
        raise UserError(f"{source}: the completion has {len(tokens)} tokens, {wanted} were asked for")
    if sampling.eos_id in tokens[:-1]:
        raise UserError(f"{source}: the completion goes on after its EOS (token {sampling.eos_id})")
    if tokens[-1] != sampling.eos_id and len(tokens) < wanted:
        raise UserError(
            f"{source}: the completion ended ({reason}) after {len(tokens)} of {wanted} tokens without the EOS; start the "
            "server with --generation-config vllm and without limits of its own"
        )
