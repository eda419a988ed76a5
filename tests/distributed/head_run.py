"""A job for test_logprobs_distributed.py: three steps on log-probabilities and entropies of fixed rows.

Its words are POLICY HEAD: HEAD is naive or chunked; the last line of the output is JSON.
"""

import json

import torch
from torch import nn

from alignment.models import load_causal, load_tokenizer
from alignment.ppo import logprobs
from alignment.ppo.modules import response_logprobs
from launch.engine import Engine
from launch.runtime import running, start_runtime

LENGTHS = (9, 7, 8, 6)
PROMPT = 4


class Scorer(nn.Module):
    def __init__(self, policy, function):
        super().__init__()
        self.policy, self.function = policy, function

    def forward(self, *inputs):
        return self.function(self.policy, *inputs)


def logprobs_of_whole_logits(policy, tokens_bS, before_N, targets_N, temperature):
    """The definition, on all logits at once."""
    log_p_NV = torch.log_softmax(policy(tokens_bS, use_cache=False).logits.flatten(0, 1)[before_N] / temperature, -1)
    return log_p_NV.gather(-1, targets_N[:, None])[:, 0], -(log_p_NV.exp() * log_p_NV).sum(-1)


def rows_of(rank, world, tokens_BS, slopes_BS):
    """This rank's rows, the places before their response tokens, these tokens and the slopes of their losses."""
    mine = list(range(rank, len(LENGTHS), world))
    places = [(i, t) for i, row in enumerate(mine) for t in range(PROMPT, LENGTHS[row])]
    tokens_bS, slopes_bS = tokens_BS[mine], slopes_BS[mine]
    before_N = torch.tensor([i * tokens_bS.shape[1] + t - 1 for i, t in places])
    targets_N = torch.stack([tokens_bS[i, t] for i, t in places])
    return tokens_bS, before_N, targets_N, torch.stack([slopes_bS[i, t] for i, t in places])


def main(words: list[str]) -> None:
    folder, head = words
    with running(start_runtime("fp32")) as runtime:
        policy = load_causal(folder, load_tokenizer(folder), partitioned=True)
        logprobs.LOGITS_PER_BLOCK = {
            "cpu": 4 * 23,
            "gpu": 4 * 23,
        }  # a few at a time, so that logits are computed again
        scorer = Scorer(policy, response_logprobs if head == "chunked" else logprobs_of_whole_logits)
        engine = Engine(runtime, scorer, torch.optim.AdamW(scorer.parameters(), lr=1e-2), 1.0, 2)
        generator = torch.Generator().manual_seed(0)
        tokens_BS = torch.randint(2, 23, (4, 9), generator=generator)
        slopes_BS = torch.randn(4, 9, generator=generator)
        *inputs, slopes_N = rows_of(runtime.rank, runtime.world, tokens_BS, slopes_BS)
        history = []
        for _ in range(3):
            logprobs_N, entropy_N = engine(*inputs, 0.7)
            loss = (logprobs_N * slopes_N - 0.1 * entropy_N).sum()
            engine.backward(loss, last=True)
            history.append([float(runtime.sum(loss.detach())), engine.step()])
        if runtime.is_main:
            print(json.dumps(history))
