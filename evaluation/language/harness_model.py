"""lm-evaluation-harness's model interface over our scorer: its tasks, prompts and metrics, each shared prefix run once.

Tokenization, truncation, chat templates and generation are its own HFLM's, which this inherits, so that answers are
the same; what is ours is how log-probabilities are computed. Importing this needs lm-eval (see harness.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.language.perplexity import sliding_windows
from evaluation.options import BATCH_TOKENS
from evaluation.scoring import tail_logprobs
from evaluation.shared_prefix import score_continuations
from launch.errors import UserError
from launch.files import canonical_json
from launch.seeding import derive_seed

GENERATION_ROWS = 16
"""Completions that are generated at once."""


class Keeper(Protocol):
    """Computes rows of samples, and may keep them (evaluation.sample_log.score_samples, with its job)."""

    def __call__(
        self,
        name: str,
        samples: Sequence[Any],
        compute: Callable[[list[Any]], Sequence[Any]],
        *,
        content: Callable[[Any], Any],
        size: Callable[[Any], int],
    ) -> list[Any]: ...


def at_once(
    name: str,
    samples: Sequence[Any],
    compute: Callable[[list[Any]], Sequence[Any]],
    *,
    content: Callable[[Any], Any],
    size: Callable[[Any], int],
) -> list[Any]:
    """The keeper that keeps nothing."""
    return list(compute(list(samples)))


class SharedPrefixLM(HFLM):
    """A loaded causal language model for lm-eval: `lm_eval.simple_evaluate(model=SharedPrefixLM(model, tokenizer), ...)`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int = BATCH_TOKENS,
        seed: int = 0,
        keep: Keeper = at_once,
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=GENERATION_ROWS)
        self.batch_tokens, self.seed, self.keep = batch_tokens, seed, keep
        self.truncated = 0
        """Requests whose context was cut from the left because it did not fit."""

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, whether greedy) of each request (texts, context ids, continuation ids)."""
        groups: dict[tuple[int, ...], list[int]] = {}
        tails = []
        for number, (texts, context, continuation) in enumerate(requests):
            groups.setdefault(self._fit(texts, context, continuation), []).append(number)
            tails.append(list(continuation))
        samples = [(context, [tails[n] for n in numbers]) for context, numbers in groups.items()]
        rows = self.keep(
            "loglikelihood",
            samples,
            self._score_groups,
            content=lambda sample: [list(sample[0]), sample[1]],
            size=lambda sample: len(sample[0]) + sum(map(len, sample[1])),
        )
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for numbers, row in zip(groups.values(), rows, strict=True):
            for number, (logprob, greedy) in zip(numbers, row, strict=True):
                answers[number] = (logprob, greedy)
        return answers

    def _fit(self, texts: Any, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """The context, cut from the left to what the model can read with the continuation less its last token."""
        if len(continuation) > self.max_length:
            raise UserError(
                f"tasks: a continuation of {len(continuation)} tokens ({texts[1] if texts else ''!r:.60}) is longer than "
                f"the model's context of {self.max_length}; use a model with a longer context"
            )
        room = self.max_length + 1 - len(continuation)
        self.truncated += len(context) > room
        return tuple(context[-room:])

    def _score_groups(self, samples: list[tuple[tuple[int, ...], list[list[int]]]]) -> list[list[tuple[float, bool]]]:
        contexts = [context for context, tails in samples for _ in tails]
        scored = score_continuations(
            self.model, contexts, [t for _, tails in samples for t in tails], self.batch_tokens
        )
        found = iter([(float(s.logprobs_T.double().sum()), s.greedy) for s in scored])
        return [[next(found) for _ in tails] for _, tails in samples]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text after the prefix token, in windows that each token is scored once in."""
        return self.keep("rolling", [r.args[0] for r in requests], self._score_texts, content=str, size=len)

    def _score_texts(self, texts: list[str]) -> list[float]:
        ids = [[self.prefix_token_id, *self.tok_encode(text)] for text in texts]
        plan = [
            (n, w) for n, i in enumerate(ids) for w in sliding_windows(len(i) - 1, self.max_length, self.max_length)
        ]
        windows = [ids[n][w.start : w.stop] for n, w in plan]
        scored = tail_logprobs(self.model, windows, [w.scored for _, w in plan], batch_tokens=self.batch_tokens)
        parts: list[list[float]] = [[] for _ in texts]
        for (number, _), values in zip(plan, scored, strict=True):
            parts[number].append(float(values.double().sum()))
        return [math.fsum(part) for part in parts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions of each (context, settings), by HFLM; samples of one prompt are counted, so that they differ."""
        seen: dict[str, int] = {}
        samples = []
        for request in requests:
            key = canonical_json(request.args)
            seen[key] = seen.get(key, 0) + (1 if request.args[1].get("do_sample") else 0)
            samples.append((request, seen[key]))

        def generate(part: list[tuple[Instance, int]]) -> list[str]:
            torch.manual_seed(derive_seed(self.seed, canonical_json([(r.args, n) for r, n in part])))
            return super(SharedPrefixLM, self).generate_until([r for r, _ in part], disable_tqdm=True)

        return self.keep(
            "generate_until",
            samples,
            generate,
            content=lambda sample: [*sample[0].args, sample[1]],
            size=lambda sample: len(sample[0].args[0]),
        )
