"""`alignkit reward serve --model DIR`: a reward model over HTTP, for PPO of alignkit, OpenRLHF or anything else.

`POST /`, `/score` or `/get_reward` with the JSON of request.py answers `{"rewards": [...], "scores": [...], "extra_logs":
{}}`; `GET /health` answers `{"status": "ok", "model": NAME}`. Faults are `{"error": "one sentence"}` with a status of
4xx (the request's) or 5xx (ours). The standard library's server: one thread for each connection, the model in one of its own.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from launch.addresses import read_secret
from launch.config import describe, load_config
from launch.ranges import PositiveInt, Range


@dataclass(kw_only=True)
class ServeConfig:
    """A reward model as an HTTP service. It ends on SIGTERM, after the requests that it has."""

    model: str = ""
    """The reward model: a folder or hub:org/name."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this machine's own need token_env, or without_token."""
    port: Annotated[int, Range(0, 65_535)] = 8000
    """Port to listen on; 0 takes a free one, which the first line of output names."""
    token_env: str | None = None
    """Environment variable that holds the bearer token which requests must bring."""
    without_token: bool = False
    """Listen on an open address without a token: whoever reaches the port may use the model."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the weights and the body; the head computes in fp32."""
    batch_tokens: PositiveInt = 8192
    """Padded size of a batch."""
    max_rows: PositiveInt = 1024
    """Most rows in one request."""
    max_waiting: PositiveInt = 4096
    """Most rows that wait for the model; beyond, requests are answered with 503."""
    max_request_mib: PositiveInt = 8
    """Largest body of a request."""

    def check(self) -> None:
        if not self.model:
            raise ValueError("model is missing; add --model DIR")
        if not (is_own_address(self.host) or self.token_env or self.without_token):
            raise ValueError(
                f"host: {self.host} can be reached from other machines; add --token_env VARIABLE, or --without_token"
            )


def is_own_address(host: str) -> bool:
    """Whether only this machine can reach an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def main(arguments: Sequence[str]) -> None:
    """Entry point of `alignkit reward serve`."""
    if any(word in ("-h", "--help") for word in arguments):
        print(f"alignkit reward serve --model DIR [--key value ...]\n\n{__doc__}\n{describe(ServeConfig)}")
        return
    config = load_config(ServeConfig, arguments)
    token = read_secret("token_env", config.token_env)
    from alignment.reward.server import serve  # it imports torch, which neither --help nor a typo should wait for

    serve(config, token)
