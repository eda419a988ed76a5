"""A job for test_logprobs_distributed.py: three steps on log-probabilities and entropies of fixed rows.

python -m tests.distributed.head_run POLICY HEAD: HEAD is naive or chunked; the last line of the output is JSON.
"""

import json
import sys

import torch
from torch import nn

from alignment.models import load_causal, load_tokenizer
from alignment.ppo import logprobs, models
from launch.engine import Engine
from launch.runtime import running, start_runtime


class Scorer(nn.Module):
    def __init__(self, policy, function):
        super().__init__()
        self.policy, self.function = policy, function

    def forward(self, *inputs):
        return self.function(self.policy, *inputs)


def main(folder: str, head: str) -> None:
    with running(start_runtime("fp32")) as runtime:
        policy = load_causal(folder, load_tokenizer(folder), partitioned=True)
        if head == "chunked":
            logprobs.LOGITS_PER_CHUNK = 4 * 23  # four tokens at a time, so that logits are computed again
            assert logprobs.give_logprob_head(policy)
        function = logprobs.response_logprobs if head == "chunked" else models.response_logprobs
        scorer = Scorer(policy, function)
        engine = Engine(runtime, scorer, torch.optim.AdamW(scorer.parameters(), lr=1e-2), 1.0, 2)
        generator = torch.Generator().manual_seed(0)
        tokens_BS = torch.randint(2, 23, (4, 9), generator=generator)
        mask_BS = (torch.arange(9) < torch.tensor([9, 7, 8, 6])[:, None]).long()
        slopes_BT = torch.randn(4, 5, generator=generator)
        rows, history = slice(runtime.rank, None, runtime.world), []
        for _ in range(3):
            logprobs_BT, entropy_BT = engine(tokens_BS[rows], mask_BS[rows], 5, 0.7)
            loss = ((logprobs_BT * slopes_BT[rows] - 0.1 * entropy_BT) * mask_BS[rows, -5:]).sum()
            engine.backward(loss, last=True)
            history.append([float(runtime.sum(loss.detach())), engine.step()])
        if runtime.is_main:
            print(json.dumps(history))


if __name__ == "__main__":
    main(*sys.argv[1:])
