"""An HTTP service as a source. It speaks the JSON of OpenRLHF's `remote_rm_url`.

Request: `query` (prompt and completion as one text, with the EOS where the completion ended), `prompts` and `labels`,
one value for each episode. Besides, for services that know them: `completions`, `finished`, and `messages` where a
prompt is made of messages (`prompts` then has it as the policy's chat template renders it).
Answer: `{"rewards": [...]}`, with optional `scores` and `extra_logs`; or `{"scores": [...]}`; or the bare list.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.reward.sources.protocol import Episodes, Scores, check_rewards, single
from launch.errors import UserError, nearest
from launch.exchange import Backoff, Beat, Endpoint, Exchange, Notice, Say

DEFAULT_LABELS = "reference"


class ServiceSource:
    """Sends this process's episodes in batches, and waits for the service as long as it takes."""

    row_by_row = True

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        policy_tokenizer: PreTrainedTokenizerBase,
        backoff: Backoff,
        labels: str | None = None,
        batch_size: int = 32,
        concurrency: int = 4,
        beat: Beat = lambda: None,
        say: Say = lambda line: None,
    ) -> None:
        self.name, self.endpoint, self.tokenizer, self.backoff = name, endpoint, policy_tokenizer, backoff
        self.labels, self.batch_size, self.concurrency, self.beat = labels, batch_size, concurrency, beat
        self.source = f"reward {name} ({endpoint.url})"
        self._notice = Notice(self.source, say)
        self._calls = 0

    def score(self, episodes: Episodes) -> Scores:
        starts = range(0, len(episodes), self.batch_size)
        columns = self._columns(episodes)
        bodies = [
            self._encode({key: rows[at : at + self.batch_size] for key, rows in columns.items()}) for at in starts
        ]
        sizes = [min(self.batch_size, len(episodes) - at) for at in starts]

        def ask(number: int, attempt: int) -> dict[str, Tensor]:
            return read_answer(self.endpoint.post(bodies[number]), sizes[number], self.source, starts[number])

        self._calls += 1
        counters = (self._calls, int(os.environ.get("RANK", "0")))
        exchange = Exchange(ask, self.backoff, self._notice, counters)
        return self._join(exchange.run(len(bodies), self.concurrency, self.beat))

    def _join(self, answers: list[dict[str, Tensor]]) -> Scores:
        """The scores of all batches; of what is to be logged, that which every answer has."""
        common = [key for key in (answers[0] if answers else {}) if all(key in answer for answer in answers)]
        joined = {key: torch.cat([answer[key] for answer in answers]) for key in common}
        rewards_B = joined.pop("rewards", torch.zeros(0))
        return single(self.name, rewards_B, **joined)

    def _columns(self, episodes: Episodes) -> dict[str, list[Any]]:
        """The request for all episodes: column -> B values."""
        prompts = [
            turns if isinstance(turns, str) else str(self.tokenizer.decode(list(ids)))
            for turns, ids in zip(episodes.prompts, episodes.prompt_ids, strict=True)
        ]
        rows = zip(prompts, episodes.completions, episodes.finished, strict=True)
        request: dict[str, list[Any]] = {
            "query": [f"{prompt}{text}{self.tokenizer.eos_token if ended else ''}" for prompt, text, ended in rows],
            "prompts": prompts,
            "labels": self._labels(episodes),
            "completions": list(episodes.completions),
            "finished": [bool(ended) for ended in episodes.finished],
        }
        if not all(isinstance(turns, str) for turns in episodes.prompts):
            request["messages"] = [None if isinstance(turns, str) else turns for turns in episodes.prompts]
        return request

    def _labels(self, episodes: Episodes) -> list[Any]:
        columns = episodes.columns()
        if self.labels is not None and self.labels not in columns:
            raise UserError(
                f"{self.source}: labels: the prompts have no column '{self.labels}'{nearest(self.labels, columns)}"
            )
        return columns.get(self.labels or DEFAULT_LABELS, [None] * len(episodes))

    def _encode(self, request: dict[str, list[Any]]) -> bytes:
        try:
            return json.dumps(request, ensure_ascii=False, allow_nan=False, default=str).encode()
        except (ValueError, UnicodeEncodeError) as error:
            raise UserError(
                f"{self.source}: the episodes cannot be sent as JSON ({error}); mend the column of labels"
            ) from None


def read_answer(content: bytes, n: int, source: str, first: int = 0) -> dict[str, Tensor]:
    """`rewards` (n,) of a service's answer for n episodes, of which the first is row `first` + 1; and what it logs.

    UserError when it is no JSON, holds no rewards, or another number of them, or one that is no finite number.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise UserError(f"{source}: the answer is not JSON: {content[:60]!r}; is this a reward service?") from None
    if isinstance(answer, list):
        answer = {"rewards": answer}
    if not isinstance(answer, dict) or not {"rewards", "scores"} & set(answer):
        held = f"only {', '.join(map(repr, answer)) or 'nothing'}" if isinstance(answer, dict) else repr(answer)[:60]
        raise UserError(f"{source}: the answer has neither 'rewards' nor 'scores', {held}; see docs/reward_sources.md")
    logged: dict[Any, Any] = {"scores": answer["scores"]} if {"rewards", "scores"} <= set(answer) else {}
    if isinstance(answer.get("extra_logs"), dict):
        logged |= answer["extra_logs"]
    rewards = answer["rewards"] if "rewards" in answer else answer["scores"]
    found = {"rewards": check_rewards(rewards, n, source, first)}
    for key, values in logged.items():
        with contextlib.suppress(UserError):  # what is to be logged and is no number ends no run
            values = values if isinstance(values, list) else [values] * n  # one number for the batch
            found.setdefault(str(key), check_rewards(values, n, source))
    return found
