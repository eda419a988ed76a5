"""Log-probabilities and entropies of a micro-batch: from the whole logits against a block at a time, time and memory.

python -m benchmarks.ppo_logprobs    (about two minutes on two cores; writes benchmarks/results/ppo_logprobs.json)

The two take turns in one process. `peak_mb` is how much the largest resident size of a process of its own grows.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from alignment.ppo.logprobs import LOGITS_PER_BLOCK, linear_logprobs
from benchmarks.common import RESULTS, about
from launch.files import write_json
from launch.provenance import peak_memory_mib

TOKENS, WIDTH, TEMPERATURE = 16 * 64, 256, 0.7
ROUNDS = {1024: 40, 32768: 10}


def from_whole_logits(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """As alignment/ppo/models.py does."""
    logits_NV = (hidden_ND @ weight_VD.t()).float() / TEMPERATURE
    normaliser_N = torch.logsumexp(logits_NV, -1)
    chosen_N = logits_NV.gather(-1, targets_N[:, None])[:, 0]
    return chosen_N - normaliser_N, normaliser_N - (torch.softmax(logits_NV, -1) * logits_NV).sum(-1)


def from_chunks(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    return linear_logprobs(hidden_ND, weight_VD, None, targets_N, TEMPERATURE, LOGITS_PER_BLOCK["cpu"])


METHODS = {"whole": from_whole_logits, "chunked": from_chunks}


def make_inputs(vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (N, D) and a weight (V, D) that want gradients, targets (N,), slopes of the loss (N,)."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(TOKENS, WIDTH, generator=generator).requires_grad_()
    weight_VD = (0.05 * torch.randn(vocabulary, WIDTH, generator=generator)).requires_grad_()
    targets_N = torch.randint(0, vocabulary, (TOKENS,), generator=generator)
    return hidden_ND, weight_VD, targets_N, torch.randn(TOKENS, generator=generator)


def run_once(method: str, what: str, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """`forward` without gradients; `backward` of the policy loss; `backward_entropy` with an entropy bonus in it."""
    hidden_ND, weight_VD, targets_N, slopes_N = inputs
    hidden_ND.grad = weight_VD.grad = None
    with torch.set_grad_enabled(what != "forward"):
        logprobs_N, entropy_N = METHODS[method](hidden_ND, weight_VD, targets_N)
    if what != "forward":
        bonus = 0.01 * entropy_N.sum() if what == "backward_entropy" else 0.0
        ((logprobs_N * slopes_N).sum() - bonus).backward()


def time_both(what: str, vocabulary: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each method, in turn: median, smallest, and the quartiles' distance."""
    inputs, times = make_inputs(vocabulary), {method: [] for method in METHODS}
    for turn in range(ROUNDS[vocabulary] + 2):
        for method in list(METHODS) if turn % 2 else list(METHODS)[::-1]:
            start = time.perf_counter()
            run_once(method, what, inputs)
            if turn >= 2:
                times[method].append(1e3 * (time.perf_counter() - start))
    return {method: summarise(values) for method, values in times.items()}


def summarise(values: list[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(values, n=4)
    figures = {"median_ms": quartiles[1], "min_ms": min(values), "iqr_ms": quartiles[2] - quartiles[0]}
    return {name: round(value, 2) for name, value in figures.items()} | {"rounds": len(values)}


def peak_mb(method: str, what: str, vocabulary: int) -> float:
    """Growth of the largest resident size over one pass, in a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.ppo_logprobs", method, what, str(vocabulary)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(method: str, what: str, vocabulary: int) -> None:
    inputs = make_inputs(vocabulary)
    small = tuple(x[:8].detach().requires_grad_(x.requires_grad) for x in inputs)
    run_once(
        method, what, (small[0], inputs[1], small[2], small[3])
    )  # the libraries' own buffers, and the weight's gradient
    before = peak_memory_mib()
    run_once(method, what, inputs)
    print(peak_memory_mib() - before)


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(2)
    load, results = os.getloadavg()[0], {}
    for vocabulary in ROUNDS:
        for what in ("forward", "backward", "backward_entropy"):
            timed = time_both(what, vocabulary)
            for method, figures in timed.items():
                figures["peak_mb"] = round(peak_mb(method, what, vocabulary), 1)
            results[f"V={vocabulary} {what}"] = timed
            print(vocabulary, what, timed, flush=True)
    shape = {"tokens": TOKENS, "width": WIDTH, "logits_per_block": LOGITS_PER_BLOCK["cpu"], "threads": 2}
    write_json(
        RESULTS / "ppo_logprobs.json",
        {
            **about("python -m benchmarks.ppo_logprobs"),
            "shape": shape,
            "results": results,
            "load_average_at_start": round(load, 2),
        },
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print_peak(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
