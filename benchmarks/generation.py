"""The generation engine against `model.generate`, and the bare passes of a PPO step: one process, methods in turn.

python -m benchmarks.generation    (about five minutes on two cores; writes benchmarks/results/generation.json)

The model, prompts and lengths are those of benchmarks/ppo_case.py: 64 prompts of 32 tokens, at most 64 new ones, Llama of hidden
256 and 4 layers. `generate` samples with its KV cache, as PPO trainers call it. Ratios are of medians of calls that took
turns; above 1 the engine is faster. `passes` times a forward pass without gradient and a forward and backward pass over
all 64 x 96 tokens, log-probabilities of the response included, in micro-batches of 16.

A GPU is used where there is one, with CUDA graphs that are kept from call to call, as PPO keeps them from rollout to
rollout. There, run `python -m benchmarks.generation --model 0.5B` (half a billion parameters; writes
generation-gpu-0.5B.json).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alignment.cuda_graphs import recorder_for
from alignment.generation import DecodeGraphs, LocalEngine, Sampling
from alignment.ppo.modules import response_logprobs
from alignment.ppo.rollout import Rollout, make_batch
from benchmarks.common import about, result_file
from benchmarks.ppo_case import EOS, MODELS, PAD, Case, wait_for_device, write_case
from launch.files import write_json

TEMPERATURE = 0.7
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast, or nothing."""
    return torch.autocast(DEVICE.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def take_turns(methods: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median, smallest and largest seconds of each method; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 1):
        for name in list(methods) if turn % 2 else list(methods)[::-1]:
            start = time.perf_counter()
            methods[name]()
            wait_for_device()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in times.items()
    }


def compare_generation(model: Any, prompts: list[list[int]], case: Case, rounds: int) -> dict[str, Any]:
    """Engine and `generate` on the same prompts, each with its own random numbers; mean lengths beside the times."""
    lengths: dict[str, list[float]] = {"engine": [], "generate": []}
    ids = torch.tensor(prompts, device=DEVICE)
    graphs = DecodeGraphs(recorder_for(DEVICE))
    sampling = Sampling(case.response, TEMPERATURE, EOS, PAD)
    step = iter(range(10**6))

    def engine() -> None:
        done = LocalEngine(model, len(prompts), graphs=graphs).generate(
            prompts, sampling, 0, "benchmark", next(step), range(len(prompts))
        )
        lengths["engine"].append(statistics.mean(len(c.token_ids) for c in done))

    def generate() -> None:
        torch.manual_seed(next(step))
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            max_new_tokens=case.response,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )[:, ids.shape[1] :]
        ended = (out == EOS).int().argmax(1) + 1
        lengths["generate"].append(float(torch.where((out == EOS).any(1), ended, out.shape[1]).float().mean()))

    with torch.no_grad():
        seconds = take_turns({"engine": engine, "generate": generate}, rounds)
    return {
        "seconds": seconds,
        "mean_length": {name: statistics.mean(values) for name, values in lengths.items()},
        "ratio": seconds["generate"]["median"] / seconds["engine"]["median"],
        "graphs": len(graphs.replays),
    }


def time_passes(model: Any, prompts: list[list[int]], case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the bare passes over the episodes of a rollout of full length: PPO's own, and transformers' with its loss."""
    generator = torch.Generator().manual_seed(2)
    responses = torch.randint(2, case.vocabulary, (len(prompts), case.response), generator=generator).tolist()
    ones = torch.ones(len(prompts), case.response, device=DEVICE)
    rollout = Rollout([{"prompt_ids": ids} for ids in prompts], responses, list(range(len(prompts))), ones, ones[:, 0])
    batches = [
        make_batch(rollout, range(start, start + case.micro_batch), PAD)
        for start in range(0, len(prompts), case.micro_batch)
    ]

    def forward() -> None:
        with torch.no_grad():
            for b in batches:
                response_logprobs(model, b.tokens_bS, b.before_N, b.targets_N, TEMPERATURE)

    def forward_backward() -> None:
        for b in batches:
            response_logprobs(model, b.tokens_bS, b.before_N, b.targets_N, TEMPERATURE)[0].sum().backward()
        model.zero_grad(set_to_none=True)

    def plain_forward() -> None:
        with torch.no_grad():
            for b in batches:
                model(b.tokens_bS, use_cache=False)

    def plain_forward_backward() -> None:
        for b in batches:
            model(b.tokens_bS, labels=b.tokens_bS, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    passes = (forward, forward_backward, plain_forward, plain_forward_backward)
    return take_turns({function.__name__: function for function in passes}, rounds)


def main() -> None:
    """Every vocabulary, kind of length and precision; write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=list(MODELS), default="small")
    options = parser.parse_args()
    rounds, sizes = options.rounds, dict(MODELS[options.model])
    found: dict[str, Any] = {
        **about(f"python -m benchmarks.generation --rounds {rounds} --model {options.model}"),
        "unit": "seconds",
        "threads": torch.get_num_threads(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "generation": {},
        "passes": {},
    }
    for vocabulary in (1024, 32768):
        for natural in (False, True):
            case = Case(vocabulary, natural, **sizes)
            with tempfile.TemporaryDirectory() as folder:
                write_case(Path(folder), case)
                model: Any = AutoModelForCausalLM.from_pretrained(Path(folder) / "policy", dtype=torch.float32)
                model = model.to(DEVICE)
                prompts = json.loads((Path(folder) / "prompts.json").read_text())[: case.batch]
            for precision in ("fp32", "bf16"):
                with autocast(precision):
                    name = f"{case.name}, {precision}"
                    found["generation"][name] = compare_generation(model.eval(), prompts, case, rounds)
                    print(name, found["generation"][name], flush=True)
                    if not natural:
                        found["passes"][name] = time_passes(model, prompts, case, rounds)
                        print(name, found["passes"][name], flush=True)
                write_json(result_file("generation", options.model), found)  # a run that is cut short keeps what it has


if __name__ == "__main__":
    main()
