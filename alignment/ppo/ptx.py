"""PTX: pretraining or SFT data mixed into the optimizer steps of PPO (Ouyang et al. 2022, InstructGPT, section 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignment.ppo.rollout import Batch, Prompt, Rollout, make_batch
from alignment.prompts import holds_pairs
from data import load_documents, load_pairs
from data.encoding import encode_completions, encode_prompts
from launch.errors import UserError
from launch.runtime import Runtime
from launch.seeding import permutation


@dataclass
class PTXData:
    """Rows to learn from: (what is read, what is learned), as token ids."""

    rows: list[tuple[list[int], list[int]]]
    batch_size: int
    seed: int
    steps_per_update: int
    pad_id: int

    def batch(self, counter: tuple[int, int], runtime: Runtime) -> tuple[Batch, int]:
        """This rank's rows of the optimizer step (update, step of it), and the learned tokens of the global batch.

        The pass over the rows is shuffled anew in each epoch; a step's rows follow from its number alone.
        """
        n, first = len(self.rows), (counter[0] * self.steps_per_update + counter[1]) * self.batch_size
        numbers = range(first, first + self.batch_size)
        orders = {epoch: permutation(n, self.seed, "ppo-ptx", epoch) for epoch in {i // n for i in numbers}}
        chosen = [self.rows[int(orders[i // n][i % n])] for i in numbers]
        mine = chosen[runtime.rank :: runtime.world]
        prompts: list[Prompt] = [{"prompt_ids": read} for read, _ in mine]
        learned = [target for _, target in mine]
        mask_BT = torch.zeros(len(mine), 1, device=runtime.device)
        episodes = Rollout(prompts, learned, list(range(len(mine))), mask_BT, mask_BT[:, 0])
        return make_batch(episodes, range(len(mine)), self.pad_id), sum(len(target) for _, target in chosen)


def load_ptx(config: Any, tokenizer: Any, context: int, world: int) -> PTXData | None:
    """The PTX data of a PPO config, or None. Pairs: completions with EOS are learned; text: all but the first token.

    Text is cut into rows of the rollout's longest episode, so that PTX needs no more memory than PPO does.
    """
    if not config.ptx_data:
        return None
    if config.ptx_batch_size % world:
        raise UserError(
            f"ptx_batch_size: {config.ptx_batch_size} is not a multiple of {world} processes; choose one that is"
        )
    rows = (
        _pairs(config.ptx_data, tokenizer)
        if holds_pairs(config.ptx_data)
        else _text(config.ptx_data, tokenizer, context)
    )
    fitting = [(read, learned) for read, learned in rows if learned and len(read) + len(learned) <= context]
    if not fitting:
        raise UserError(f"ptx_data: {config.ptx_data}: no row of at most {context} tokens; raise max_new_tokens")
    return PTXData(
        fitting, config.ptx_batch_size, config.seed, config.epochs * config.minibatches, tokenizer.pad_token_id
    )


def _pairs(source: str, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    pairs = load_pairs(source)
    prompts = [pair.prompt for pair in pairs]
    completions = encode_completions(tokenizer, prompts, [pair.completion for pair in pairs])
    return list(zip(encode_prompts(tokenizer, prompts), completions, strict=True))


def _text(source: str, tokenizer: Any, context: int) -> list[tuple[list[int], list[int]]]:
    rows = []
    for document in load_documents(source):
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        for start in np.arange(0, len(ids) - 1, context - 1):
            piece = ids[start : start + context]
            rows.append((piece[:1], piece[1:]))
    return rows
