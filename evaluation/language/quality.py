"""Quality of completions without a judge: diversity, repetition, length, and whether they end.

Words are runs of characters that are not white space. These numbers describe; only extremes condemn.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data.completions import Completion
from evaluation.language.self_bleu import self_bleu
from evaluation.schema import Metric, metric
from evaluation.statistics import LEVEL, Estimate, clustered_mean, mean, proportion
from evaluation.statistics.intervals import z_quantile

REPETITION_ORDER = 4
RUN_LENGTH = 5


def ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    """The n-grams of a sequence, in order; none when it is shorter than `order`."""
    return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]


def repetition(words: Sequence[str], order: int = REPETITION_ORDER) -> float:
    """1 - distinct / all n-grams within one text (seq-rep-n of Welleck et al. 2020); 0 when it has none."""
    grams = ngrams(words, order)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(
    texts: Sequence[Sequence[str]], order: int, level: float = LEVEL, groups: Sequence[object] | None = None
) -> Estimate | None:
    """Distinct / all n-grams over texts (distinct-n of Li et al. 2016), with the delete-one jackknife's stderr.

    `groups` labels texts that belong together (samples of one prompt): the jackknife leaves out whole groups. The
    ratio falls as texts are added: compare it at equal n and like lengths only. None without any n-gram.
    """
    counts = _count_by_group([ngrams(words, order) for words in texts], groups)
    total: Counter[tuple[str, ...]] = Counter()
    for count in counts:
        total.update(count)
    size, kinds, n = total.total(), len(total), len(counts)
    if size == 0:
        return None
    value = kinds / size
    without = []
    for count in counts:
        own = sum(total[gram] == number for gram, number in count.items())
        rest = size - count.total()
        without.append((kinds - own) / rest if rest else value)
    if n < 2:
        return Estimate(value, n, None, None, None, level, f"none (n = {n})")
    spread = np.asarray(without) - np.mean(without)
    stderr = math.sqrt((n - 1) / n * float(spread @ spread))
    half = z_quantile(level) * stderr
    method = "jackknife, normal" + (", clustered" if n < len(texts) else "")
    return Estimate(value, n, stderr, max(0.0, value - half), min(1.0, value + half), level, method)


def _count_by_group(
    grams: Sequence[list[tuple[str, ...]]], groups: Sequence[object] | None
) -> list[Counter[tuple[str, ...]]]:
    """The counts of each group's n-grams; without groups, of each text's."""
    counts: dict[object, Counter[tuple[str, ...]]] = {}
    for label, found in zip(range(len(grams)) if groups is None else groups, grams, strict=True):
        counts.setdefault(label, Counter()).update(found)
    return list(counts.values())


def is_degenerate(text: str) -> bool:
    """Whether a text says nothing: no letter or digit, one word RUN_LENGTH times in a row, or mostly repeated 4-grams."""
    words = text.split()
    if not any(c.isalnum() for c in text):
        return True
    run = longest = 1
    for before, word in itertools.pairwise(words):
        run = run + 1 if word == before else 1
        longest = max(longest, run)
    return longest >= RUN_LENGTH or repetition(words) > 0.5


def clustered_or_plain(values: Sequence[float], prompts: Sequence[str], level: float = LEVEL) -> Estimate:
    """The mean of one value for each completion; samples of one prompt count as one unit."""
    return mean(values, level) if len(set(prompts)) == len(values) else clustered_mean(values, prompts, level)


def length_metrics(rows: Sequence[Completion], level: float = LEVEL) -> list[Metric]:
    """Mean length in tokens (with the EOS) and in characters, and the share that ended by themselves."""
    prompts = [row.prompt_text for row in rows]
    tokens = clustered_or_plain([len(row.completion_ids) for row in rows], prompts, level)
    characters = clustered_or_plain([len(row.text) for row in rows], prompts, level)
    finished = proportion([row.finished for row in rows], prompts, level)
    return [
        metric("mean_length", tokens, "tokens of a completion", higher_is_better=None, unit="tokens"),
        metric("mean_characters", characters, "characters of a completion", higher_is_better=None, unit="characters"),
        metric(
            "share_finished", finished, "completions that ended with EOS in time", higher_is_better=True, unit="share"
        ),
    ]


def quality_metrics(rows: Sequence[Completion], level: float = LEVEL) -> list[Metric]:
    """Lengths, emptiness, repetition, self-BLEU and distinct-1 to -3 of the completions of a file."""
    words = [row.text.split() for row in rows]
    prompts = [row.prompt_text for row in rows]
    repeated = clustered_or_plain([repetition(w) for w in words], prompts, level)
    metrics = [
        *length_metrics(rows, level),
        metric(
            "share_empty",
            proportion([not w for w in words], prompts, level),
            "completions without a word",
            higher_is_better=False,
            unit="share",
        ),
        metric(
            "repetition_4",
            repeated,
            "repeated word 4-grams within a completion",
            higher_is_better=False,
            unit="share",
        ),
    ]
    if len(words) > 1:
        monotony = clustered_or_plain(self_bleu(words), prompts, level)
        text = "mean BLEU-4 of a completion against all the others; its interval takes them as independent"
        metrics.append(metric("self_bleu", monotony, text, higher_is_better=False, unit="share"))
    for order in (1, 2, 3):
        text = f"distinct / all word {order}-grams over all completions"
        estimate = distinct(words, order, level, prompts)
        note = "" if estimate else f"no completion has {order} words"
        metrics.append(metric(f"distinct_{order}", estimate, text, higher_is_better=True, unit="share", note=note))
    return metrics
