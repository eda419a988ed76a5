"""PTX: pretraining or SFT data mixed into the optimizer steps of PPO (Ouyang et al. 2022, InstructGPT, section 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignment.ppo.rollout import Prompt, Rollout
from alignment.prompts import holds_pairs
from data import load_documents, load_pairs
from data.encoding import encode_completions, encode_prompts
from launch.errors import UserError
from launch.seeding import permutation


@dataclass
class PTXData:
    """Rows to learn from: (what is read, what is learned), as token ids."""

    rows: list[tuple[list[int], list[int]]]
    batch_size: int
    seed: int
    steps_per_update: int
    left_out: int = 0
    """Rows that are longer than a rollout's longest episode may be, or hold nothing to learn."""

    def episodes(self, counter: tuple[int, int], device: torch.device) -> Rollout:
        """The rows of the optimizer step (update, step of it) of all ranks, for `plan_parts` and `make_batch`.

        The pass over the rows is shuffled anew in each epoch; a step's rows follow from its number alone.
        """
        n, first = len(self.rows), (counter[0] * self.steps_per_update + counter[1]) * self.batch_size
        numbers = range(first, first + self.batch_size)
        orders = {epoch: permutation(n, self.seed, "ppo-ptx", epoch) for epoch in {i // n for i in numbers}}
        chosen = [self.rows[int(orders[i // n][i % n])] for i in numbers]
        prompts: list[Prompt] = [{"prompt_ids": read} for read, _ in chosen]
        mask_BT = torch.zeros(len(chosen), 1, device=device)
        return Rollout(prompts, [learned for _, learned in chosen], list(range(len(chosen))), mask_BT, mask_BT[:, 0])


def load_ptx(config: Any, tokenizer: Any, context: int) -> PTXData | None:
    """The PTX data of a PPO config, or None. Pairs: completions with EOS are learned; text: all but the first token.

    Text is cut into rows of the rollout's longest episode, so that PTX needs no more memory than PPO does.
    """
    if not config.ptx_data:
        return None
    try:
        pairs = holds_pairs(config.ptx_data)
        rows = _pairs(config.ptx_data, tokenizer) if pairs else _text(config.ptx_data, tokenizer, context)
    except UserError as error:
        raise UserError(f"ptx_data: {error}; give rows with a prompt and a completion, or with a text") from None
    fitting = [(read, learned) for read, learned in rows if learned and len(read) + len(learned) <= context]
    if not fitting:
        raise UserError(f"ptx_data: {config.ptx_data}: no row of at most {context} tokens; raise max_new_tokens")
    steps, left_out = config.epochs * config.minibatches, len(rows) - len(fitting)
    return PTXData(fitting, config.ptx_batch_size, config.seed, steps, left_out)


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
