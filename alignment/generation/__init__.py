"""Rollouts: completions sampled from the policy, with their log-probabilities. docs/generation.md explains it."""

from alignment.generation.engine import LocalEngine, RolloutEngine, generate
from alignment.generation.graphs import DecodeGraphs
from alignment.generation.prompts import check_lengths, left_pad, positions_of
from alignment.generation.sampling import Completion, Sampling, pick_tokens
from alignment.generation.vllm import VLLMEngine

__all__ = [
    "Completion",
    "DecodeGraphs",
    "LocalEngine",
    "RolloutEngine",
    "Sampling",
    "VLLMEngine",
    "check_lengths",
    "generate",
    "left_pad",
    "pick_tokens",
    "positions_of",
]
