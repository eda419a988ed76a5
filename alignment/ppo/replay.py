"""PPO from dumped rollouts: nothing is sampled, nothing is scored, no source and no reference model is loaded.

With the config and the start of the run that dumped them, the updates are the same to the bit: from update 1 that start is
`policy`, from a later one the checkpoint of just before it (`replay_from`). With another loss,
estimator or learning rate the rollouts are off-policy from the second update on: they are what the dumping run's policy
did, not this one's, and the ratio's old log-probabilities stay those of the dump.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.ppo.config import PPOConfig
from alignment.ppo.controllers import KLController, RewardNormaliser
from alignment.ppo.dump import TOKEN_COLUMNS
from alignment.ppo.estimators import ESTIMATORS
from alignment.ppo.rollout import Rollout
from launch.checkpoint import Checkpoint, verify_folder
from launch.engine import Engine
from launch.errors import UserError

NEEDED = (
    *("update", "room", "kl", "normaliser", "rate_factor"),
    *("group", "response", "score", "finished", "prompt_ids", "response_ids"),
)


class Replay:
    """The dumped rollouts of a file, or of a folder in the order of their updates."""

    def __init__(self, config: PPOConfig, tokenizer: Any, device: torch.device) -> None:
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self.files = find_dumps(Path(config.replay or ""))
        self.first = min(self.files)
        rows = self._rows(self.first)
        self.room = int(rows[0]["room"])
        """Tokens of the longest episode that the dumping run allowed for; it decides how micro-batches are cut."""
        self._state = rows[0]["kl"], rows[0]["normaliser"]
        self.rate_factor = 1.0
        """Of the learning rates in the update of the newest rollout: the dumping run may have been rolled back."""
        self._check_tokenizer(rows[0])

    def begin(self, kl: KLController, normaliser: RewardNormaliser) -> tuple[int, int]:
        """Set the state before the first rollout; returns the updates made before it, and those made after the last.

        A KL weight that is fixed is the config's.
        """
        if kl.target is not None:
            kl.load_state_dict(self._state[0])
        normaliser.load_state_dict(self._state[1])
        if self.first > self.config.updates:
            raise UserError(
                f"replay: {self.files[self.first]} is update {self.first}, but updates is {self.config.updates}; "
                "give the number of the run that dumped it"
            )
        return self.first - 1, min(self.config.updates, max(self.files))

    def start(self) -> Checkpoint | None:
        """The checkpoint that `replay_from` names. UserError unless it is whole and of the update before the first rollout."""
        if not self.config.replay_from:
            return None
        folder = Path(self.config.replay_from)
        try:
            meta = verify_folder(folder)
        except (OSError, ValueError) as error:
            raise UserError(
                f"replay_from: {folder}: {error}; give a folder checkpoints/step-... of the run that dumped the rollouts"
            ) from None
        if meta.get("step") != self.first - 1:
            raise UserError(
                f"replay_from: {folder}: is of update {meta.get('step')}, but the first rollout is that of update "
                f"{self.first}; give the checkpoint of update {self.first - 1}"
            )
        return Checkpoint(self.first - 1, folder, meta)

    def load_start(self, engine: Engine) -> dict[str, Any] | None:
        """Load weights and optimizer of the checkpoint that a replay from the middle of a run starts from, if one is named.

        Returns what else that checkpoint holds.
        """
        checkpoint = self.start()
        if checkpoint is None:
            return None
        try:
            return engine.load(checkpoint)
        except UserError:
            raise
        except (AssertionError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"replay_from: {checkpoint.folder}: does not fit the models of this run "
                f"({str(error).splitlines()[0][:200]}); give policy, critic and estimator of the run that dumped the rollouts"
            ) from None

    @property
    def warning(self) -> str | None:
        """Why the first update will not be that of the dumping run, if it will not."""
        if self.first == 1 or self.config.replay_from:
            return None
        return (
            f"WARNING: the replay begins at update {self.first} with the weights of `policy` and a new optimizer, so its updates "
            f"are NOT those of the run that dumped it; give --replay_from RUN/checkpoints/step-{self.first - 1:08d} to make them so"
        )

    def rollout(self, done: int) -> Rollout:
        """The scored rollout of the update that comes after `done` updates, whole."""
        rows, path = self._rows(done + 1), self.files[done + 1]
        if len(rows) % self.config.minibatches:
            raise UserError(f"replay: {path}: {len(rows)} episodes; minibatches must divide that")
        alone = min(Counter(row["group"] for row in rows).values()) < 2
        if alone and ESTIMATORS[self.config.estimator].needs_groups:
            raise UserError(
                f"replay: {path}: holds a prompt with one response, and estimator {self.config.estimator} compares the "
                "responses of one prompt; choose estimator gae or reinforce++, or dump a run with samples_per_prompt 2 or more"
            )
        self.rate_factor = rows[0]["rate_factor"]
        lengths = [len(row["response_ids"]) for row in rows]
        mask_BT = torch.zeros(len(rows), max(lengths))
        for row, length in enumerate(lengths):
            mask_BT[row, :length] = 1
        rollout = Rollout(
            [{**_as_mapping(row.get("row")), "prompt_ids": row["prompt_ids"]} for row in rows],
            [row["response_ids"] for row in rows],
            [row["group"] for row in rows],
            mask_BT.to(self.device),
            self._column([float(row["finished"]) for row in rows]),
            scores_B=self._column([row["score"] for row in rows]),
        )
        names = rows[0].get("components") or {}
        rollout.components = {name: self._column([row["components"][name] for row in rows]) for name in names}
        for column, field in TOKEN_COLUMNS.items():
            if rows[0].get(column) is not None:
                flat_N = self._column([value for row in rows for value in row[column]])
                setattr(rollout, field, rollout.spread(flat_N, range(len(rows))))
        self._settle_values(rollout, path)
        return rollout

    def _settle_values(self, rollout: Rollout, path: Path) -> None:
        if not self.config.needs_critic:
            rollout.values_BT = None
        elif rollout.values_BT is None:
            raise UserError(
                f"replay: {path}: dumped without a critic's values, which estimator {self.config.estimator} needs; "
                "choose an estimator without a critic"
            )

    def _column(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _rows(self, number: int) -> list[dict[str, Any]]:
        path = self.files[number]
        rows = read_rows(path)
        for place, row in enumerate(rows, 1):
            if fault := find_fault(row, number):
                raise UserError(f"replay: {path}: row {place}: {fault}; dump the run again")
        return rows

    def _check_tokenizer(self, row: dict[str, Any]) -> None:
        """UserError when the policy reads the token ids as another text."""
        size = len(self.tokenizer)
        known = all(token < size for token in [*row["prompt_ids"], *row["response_ids"]])
        if not known or str(self.tokenizer.decode(row["response_ids"])) != row["response"]:
            raise UserError(
                f"replay: {self.files[self.first]}: its token ids are not of the policy's tokenizer "
                f"(the first response was {row['response']!r}); give the policy that the run started from"
            )


def find_dumps(path: Path) -> dict[int, Path]:
    """Update -> file of a dump. UserError when there is none, or one is missing between the first and the last."""
    found: dict[int, Path] = {}
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        match = re.fullmatch(r"update-(\d+)\.(jsonl|parquet)", file.name)
        if match and int(match[1]) in found:
            raise UserError(f"replay: {path}: holds {found[int(match[1])].name} and {file.name}; keep one of them")
        if match:
            found[int(match[1])] = file
    if not found:
        raise UserError(
            f"replay: {path}: no update-000001.jsonl or the like there; give a file, or the folder `rollouts`, of a run with dump_rollouts"
        )
    missing = sorted(set(range(min(found), max(found))) - set(found))
    if missing:
        raise UserError(
            f"replay: {path}: the rollout of update {missing[0]} is missing; updates follow one another, so restore it or give a single file"
        )
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a dump. UserError when it cannot be read or is empty."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise UserError(f"replay: {path}: cannot be read ({error}); dump the run again") from None
    if not rows:
        raise UserError(f"replay: {path}: is empty; dump the run again")
    return rows


def find_fault(row: Any, number: int) -> str | None:
    """What is wrong with a row of the dump of an update."""
    if not isinstance(row, dict):
        return "is no mapping"
    if missing := [name for name in NEEDED if row.get(name) is None]:
        return f"{missing[0]} is missing"
    if row["update"] != number:
        return f"is of update {row['update']}"
    for column in TOKEN_COLUMNS:
        if row.get(column) is not None and len(row[column]) != len(row["response_ids"]):
            return f"{len(row[column])} {column} for {len(row['response_ids'])} response tokens"
    return None


def _as_mapping(row: Any) -> dict[str, Any]:
    return json.loads(row) if isinstance(row, str) else row or {}
