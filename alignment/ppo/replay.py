"""PPO from dumped rollouts: nothing is sampled, nothing is scored, no source and no reference model is loaded.

With the config and the start of the run that dumped them, the updates are the same to the bit: from update 1 that start is
`policy`, from a later one the checkpoint of just before it (`replay_from`). With another loss,
estimator or learning rate the rollouts are off-policy from the second update on: they are what the dumping run's policy
did, not this one's, and the ratio's old log-probabilities stay those of the dump. From other weights they are so from the
first step on, which is said; at another temperature all log-probabilities would be others, which is refused.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.ppo.config import PPOConfig
from alignment.ppo.controllers import KLController, RewardNormaliser
from alignment.ppo.dump import TOKEN_COLUMNS
from alignment.ppo.estimators import ESTIMATORS
from alignment.ppo.rollout import Rollout, make_batch
from launch.checkpoint import Checkpoint, verify_folder
from launch.engine import Engine
from launch.errors import UserError

NEEDED = (
    *("update", "room", "kl", "normaliser", "rate_factor"),
    *("episode", "group", "response", "score", "finished", "prompt_ids", "response_ids", "logprobs", "ref_logprobs"),
)
COMPARED = 16
"""Episodes of the first rollout whose log-probabilities are computed anew: other weights show in each of them."""
ROUNDING = {"fp32": 1e-3, "bf16": 0.1}
"""Nats by which log-probabilities of the same weights may differ, in each precision."""
NAMED = 5
"""Episodes that a message names."""


class Replay:
    """The dumped rollouts of a file, or of a folder in the order of their updates."""

    def __init__(self, config: PPOConfig, tokenizer: Any, device: torch.device) -> None:
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self.files = find_dumps(Path(config.replay or ""))
        self.first = min(self.files)
        rows = self._rows(self.first)
        for number in range(self.first + 1, min(config.updates, max(self.files)) + 1):
            if not looks_whole(self.files[number]):
                self._rows(number)  # says what is wrong with it now, not after the updates before it
        self.room = int(rows[0]["room"])
        """Tokens of the longest episode that the dumping run allowed for; it decides how micro-batches are cut."""
        self._state = rows[0]["kl"], rows[0]["normaliser"]
        self.rate_factor = 1.0
        """Of the learning rates in the update of the newest rollout: the dumping run may have been rolled back."""
        self.say: Callable[[str], Any] = lambda line: print(line, file=sys.stderr, flush=True)
        """Takes a line for the user, on the main rank."""
        self._engine: Engine | None = None
        """Whose policy the first rollout is compared with; None once it was."""
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

        Returns what else that checkpoint holds. The first rollout will be compared with the engine's policy.
        """
        self._engine = engine
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
        if done + 1 == self.first:
            self._compare_weights(rollout, rows[0])
        return rollout

    def _compare_weights(self, rollout: Rollout, row: dict[str, Any]) -> None:
        """Say so when the first rollout's log-probabilities are not those of the weights that the replay starts from.

        All ranks call this, and make the same passes.
        """
        engine, self._engine = self._engine, None
        if engine is None or self.warning:  # of other weights: that was said
            return
        precisions = {engine.runtime.precision, row.get("precision", "fp32")}
        difference = self._largest_difference(rollout, engine)
        if difference <= max(ROUNDING[precision] for precision in precisions) or not engine.runtime.is_main:
            return
        unknown = "" if "temperature" in row else ", or at another temperature or in another precision,"
        given = "replay_from" if self.config.replay_from else "policy"
        self.say(
            f"WARNING: the replayed rollouts were sampled by other weights{unknown} than those of `{given}` (largest difference of a "
            f"log-probability {difference:.3g} nats); the first steps are off-policy, so the updates are NOT those of the run that dumped it"
        )

    @torch.no_grad()
    def _largest_difference(self, rollout: Rollout, engine: Engine) -> float:
        """Of the old log-probabilities of the first episodes to those of the engine's policy, in passes of a micro-batch."""
        assert rollout.logprobs_BT is not None
        config, largest = self.config, 0.0
        for first in range(0, min(COMPARED, len(rollout)), config.micro_batch_size):
            part = range(first, min(first + config.micro_batch_size, len(rollout)))
            batch = make_batch(rollout, part, self.tokenizer.pad_token_id)
            logprobs_N, _, _ = engine(batch.tokens_bS, batch.before_N, batch.targets_N, config.temperature)
            apart_N = (logprobs_N.float() - rollout.flat(rollout.logprobs_BT, part)).abs().nan_to_num(torch.inf)
            largest = max(largest, float(apart_N.max()))
        return largest

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
        """The rows of an update in the order of their episodes, which minibatches are cut by. UserError unless all is sound."""
        path = self.files[number]
        rows = read_rows(path)
        for place, row in enumerate(rows, 1):
            if fault := find_fault(row, number):
                raise UserError(f"replay: {path}: row {place}: {fault}; dump the run again")
        if fault := find_gap(rows) or self._find_other_size(rows, number):
            raise UserError(f"replay: {path}: {fault}; restore the file, or dump the run again")
        self._check_temperature(rows, path)
        unread = () if self.config.needs_critic else ("values",)
        columns = [column for column in TOKEN_COLUMNS if column not in unread]
        for row in rows:
            if fault := find_broken_number(row, columns):
                raise UserError(
                    f"replay: {path}: episode {row['episode']}: {fault}, so it is the dump that is broken; replay the updates before "
                    "it, or dump the run again"
                )
        return sorted(rows, key=lambda row: row["episode"])

    def _find_other_size(self, rows: list[dict[str, Any]], number: int) -> str | None:
        """Old dumps do not say how many episodes an update has; but all updates of a run have as many."""
        if number == self.first:
            self._size = len(rows)
        if "episodes" in rows[0] or len(rows) == self._size:
            return None
        return f"holds {len(rows)} episodes, but {self.files[self.first].name} holds {self._size}"

    def _check_temperature(self, rows: list[dict[str, Any]], path: Path) -> None:
        """UserError when the log-probabilities are of another temperature; old dumps do not say of which they are."""
        others = {row["temperature"] for row in rows if row.get("temperature") is not None} - {self.config.temperature}
        if others:
            raise UserError(
                f"replay: {path}: was sampled at temperature {min(others)}, and its log-probabilities are of that, but temperature is "
                f"{self.config.temperature}; give --temperature {min(others)}"
            )

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


def looks_whole(path: Path) -> bool:
    """Whether a dump holds as many rows as those at its ends say; old dumps do not say. The rest is read when it is due."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            file = pyarrow.parquet.ParquetFile(path)  # whose index stands at its end
            told, count = [None], file.metadata.num_rows
            if "episodes" in file.schema_arrow.names:
                told = file.read(columns=["episodes"])["episodes"].to_pylist()
        else:
            count, ends = 0, ["", ""]
            with path.open(encoding="utf-8") as stream:
                for line in filter(str.strip, stream):
                    ends = [line if count == 0 else ends[0], line]
                    count += 1
            told = [json.loads(line).get("episodes") for line in ends]
    except (OSError, ValueError, AttributeError):
        return False
    return count > 0 and all(n in (None, count) for n in told)


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
    for name in ("episode", "episodes"):
        if type(row.get(name, 0)) is not int:
            return f"{name} is {row[name]!r}"
    for column in TOKEN_COLUMNS:
        if row.get(column) is not None and len(row[column]) != len(row["response_ids"]):
            return f"{len(row[column])} {column} for {len(row['response_ids'])} response tokens"
    return None


def find_gap(rows: list[dict[str, Any]]) -> str | None:
    """What is wrong with the episodes of a dump: it must hold those from 0 to n - 1, each once.

    Each row says n; in dumps of before it did, the largest number does, so that a missing end is not seen.
    """
    counts = {row.get("episodes") for row in rows}
    if len(counts) > 1:
        return f"its rows are of updates of {', '.join(sorted(map(str, counts)))} episodes"
    seen = Counter(row["episode"] for row in rows)
    n = counts.pop() or max(seen) + 1
    doubled = sorted(episode for episode, times in seen.items() if times > 1)
    other = sorted(episode for episode in seen if not 0 <= episode < n)
    missing = list(islice((episode for episode in range(n) if episode not in seen), NAMED))  # n may be absurd
    faults = {
        "missing": _name(missing, n - len(seen) + len(other)),
        "more than once": _name(doubled, len(doubled)),
        "unknown": _name(other, len(other)),
    }
    told = "; ".join(f"{what}: {which}" for what, which in faults.items() if which)
    return f"does not hold its {n} episodes, from 0 on, once each ({told})" if told else None


def _name(episodes: Sequence[int], count: int) -> str:
    """The first few of `count` episodes."""
    named = ", ".join(map(str, episodes[:NAMED]))
    return f"{named} and {count - NAMED} more" if count > NAMED else named


def find_broken_number(row: dict[str, Any], columns: Sequence[str]) -> str | None:
    """The first number of a row, score or in one of the columns of its tokens, that is no finite float32."""
    numbers = [("score", row["score"])]
    for column in columns:
        numbers += [(f"{column} of token {i}", value) for i, value in enumerate(row.get(column) or [], 1)]
    for name, value in numbers:
        if not (isinstance(value, (int, float)) and abs(value) <= torch.finfo(torch.float32).max):
            return f"{name} is {value}"
    return None


def _as_mapping(row: Any) -> dict[str, Any]:
    return json.loads(row) if isinstance(row, str) else row or {}
