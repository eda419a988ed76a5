"""Rollouts as files: `rollouts/update-000123.jsonl` (or .parquet) holds all that update 123 was computed from.

One row is one episode: what was asked, answered and paid for it, and the numbers of each of its tokens. With the
policy and critic that the run started from, these files reproduce its updates to the bit (alignment/ppo/replay.py):
JSON text of a float32 is that of the equal double, which loses nothing. Files are written whole or not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.ppo.config import PPOConfig
from alignment.ppo.controllers import KLController, RewardNormaliser
from alignment.ppo.rollout import Rollout
from launch.files import write_atomic
from launch.runtime import Runtime

FOLDER = "rollouts"
TOKEN_COLUMNS = {
    "logprobs": "logprobs_BT",
    "ref_logprobs": "ref_logprobs_BT",
    "values": "values_BT",
    "token_scores": "token_scores_BT",
    "engine_logprobs": "engine_logprobs_BT",
}
"""Column -> field of the rollout: a number for each response token, or nothing in the whole file."""


def dump_name(number: int, kind: str) -> str:
    """The file of an update; updates are counted from 1, as in metrics.jsonl."""
    return f"update-{number:06d}.{kind}"


class RolloutDump:
    """Writes rollouts into the run's folder, on the main rank."""

    def __init__(self, config: PPOConfig, tokenizer: PreTrainedTokenizerBase, room: int, runtime: Runtime) -> None:
        self.kind, self.folder, self.room = config.dump_rollouts, Path(config.output_dir) / FOLDER, room
        self._temperature, self._runtime = config.temperature, runtime
        self._tokenizer, self._active = tokenizer, runtime.is_main and config.dump_rollouts != "none"

    def write(
        self, rollout: Rollout, done: int, kl: KLController, normaliser: RewardNormaliser, rate_factor: float
    ) -> None:
        """Write a scored rollout of the whole batch, after `done` updates, with the state that its update depends on."""
        if not self._active:
            return
        common = {
            "update": done + 1,
            "episodes": len(rollout),  # else a torn file could not be told from a whole one
            "temperature": self._temperature,  # of all log-probabilities below
            "precision": self._runtime.precision,  # which may be measured, so the config does not say it
            "room": self.room,
            "kl": kl.state_dict(),
            "normaliser": normaliser.state_dict(),
            "rate_factor": rate_factor,
        }
        rows = [{**common, **row} for row in episode_rows(rollout, self._tokenizer)]
        content = parquet_bytes(rows) if self.kind == "parquet" else jsonl_text(rows)
        write_atomic(self.folder / dump_name(done + 1, self.kind), content)

    def cut_back(self, done: int) -> None:
        """Remove what was written of updates after the first `done`: they are made again."""
        if not self._active:
            return
        for path in self.folder.glob("update-*.*"):
            number = path.stem.removeprefix("update-")
            if number.isdigit() and int(number) > done:
                path.unlink()


def episode_rows(rollout: Rollout, tokenizer: Any) -> list[dict[str, Any]]:
    """A row of plain values for each episode of a scored rollout."""
    assert rollout.scores_B is not None
    scores, finished = rollout.scores_B.tolist(), rollout.finished_B.tolist()
    components = {name: values_B.tolist() for name, values_B in rollout.components.items()}
    tokens = {column: _ragged(getattr(rollout, field), rollout) for column, field in TOKEN_COLUMNS.items()}
    rows = []
    for i, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses, strict=True)):
        row = {
            "episode": i,
            "group": rollout.groups[i],
            "prompt": str(tokenizer.decode(list(prompt["prompt_ids"]))),
            "response": str(tokenizer.decode(list(response))),
            "score": scores[i],
            "components": {name: values[i] for name, values in components.items()},
            "finished": bool(finished[i]),
            "prompt_ids": list(prompt["prompt_ids"]),
            "response_ids": list(response),
            **{column: values[i] for column, values in tokens.items()},
            "row": {key: value for key, value in prompt.items() if key != "prompt_ids"},
        }
        rows.append(row)
    return rows


def _ragged(values_BT: Tensor | None, rollout: Rollout) -> list[list[float] | None]:
    """The numbers of each episode's response tokens, without the padding."""
    if values_BT is None:
        return [None] * len(rollout)
    lengths = [len(response) for response in rollout.responses]
    flat_N = rollout.flat(values_BT, range(len(rollout))).to("cpu", torch.float32)
    return [part.tolist() for part in flat_N.split(lengths)]


def jsonl_text(rows: list[dict[str, Any]]) -> str:
    """One line for each row. Numbers that are not finite stay as Python writes them: such a rollout is worth a look."""
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    """The same rows as Parquet; `row`, whose columns the data set chose, is JSON text there."""
    import pyarrow
    import pyarrow.parquet

    numbers, ids = pyarrow.list_(pyarrow.float32()), pyarrow.list_(pyarrow.int32())
    types = {column: numbers for column in TOKEN_COLUMNS} | {"prompt_ids": ids, "response_ids": ids}
    types |= {"score": pyarrow.float32()}
    flat = [{**row, "row": json.dumps(row["row"], ensure_ascii=False, default=str)} for row in rows]
    columns = {
        name: pyarrow.array([row[name] for row in flat], types.get(name))
        for name in flat[0]
        if flat[0][name] != {}  # Parquet has no empty struct
    }
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()
