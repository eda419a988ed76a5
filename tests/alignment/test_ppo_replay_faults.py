"""Dumps that are torn, broken, or of another run: named, and never trained on in silence."""

import json
import math
import re

import pytest
import torch

from alignment.ppo.dump import jsonl_text, parquet_bytes
from alignment.ppo.replay import read_rows
from launch.checkpoint import CheckpointStore
from launch.errors import UserError
from tests.alignment.ppo_support import run_updates, weights
from tests.alignment.replay_support import SETTINGS, listen, replay
from tests.forked import run_forked, run_whole
from tests.support import save_policy


def edit_rows(path, change):
    """Rewrite a dump of either kind with the rows that `change` makes of its rows."""
    rows = change(read_rows(path))
    if path.suffix == ".parquet":
        rows = [{**row, "row": json.loads(row["row"])} for row in rows]
        path.write_bytes(parquet_bytes(rows))
    else:
        path.write_text(jsonl_text(rows))


def without(rows, *columns):
    """Rows as they were dumped before there were these columns."""
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


TORN = [
    (lambda r: r[:6], "does not hold its 8 episodes, from 0 on, once each (missing: 6, 7); restore the file"),
    (lambda r: r[:1] * 8, "(missing: 1, 2, 3, 4, 5 and 2 more; more than once: 0)"),
    (lambda r: [*r, r[3]], "8 episodes, from 0 on, once each (more than once: 3)"),
    (lambda r: [*r[:7], {**r[7], "episode": 10**15}], "(missing: 7; unknown: 1000000000000000)"),
    (lambda r: [*r[:7], {**r[7], "episodes": 16}], "its rows are of updates of 16, 8 episodes; restore the file"),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(("tear", "message"), TORN, ids=["end", "one", "doubled", "unknown", "counts"])
def test_a_torn_dump_is_refused(make, both_dumps, kind, tear, message):
    path = both_dumps(kind) / f"update-000002.{kind}"
    edit_rows(path, tear)
    with pytest.raises(UserError) as caught:
        run_updates(replay(make, path.parent))
    assert str(caught.value).startswith(f"replay: {path}: ") and message in str(caught.value)
    assert str(caught.value).endswith("or dump the run again")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dump_of_before_the_count(make, both_dumps, kind):
    """It is read; and refused with a hole, a doubled episode, or fewer episodes than the update before."""
    folder = both_dumps(kind)
    files = sorted(folder.iterdir())
    expected = run_updates(replay(make, folder))
    for path in files:
        edit_rows(path, lambda rows: without(rows, "episodes", "temperature", "precision"))
    assert "episodes" not in read_rows(files[0])[0]
    trainer = replay(make, folder)
    said = listen(trainer)
    assert run_updates(trainer) == expected and said == []

    whole = files[1].read_bytes()
    for tear, message in (
        (lambda r: [*r[:2], *r[3:]], "does not hold its 8 episodes, from 0 on, once each (missing: 2); restore"),
        (lambda r: [*r[1:]], "(missing: 0)"),
        (lambda r: [*r[:7], r[0]], "does not hold its 7 episodes, from 0 on, once each (more than once: 0); restore"),
        (lambda r: r[:6], f"holds 6 episodes, but update-000001.{kind} holds 8; restore the file"),
    ):
        files[1].write_bytes(whole)
        edit_rows(files[1], tear)
        with pytest.raises(UserError) as caught:
            run_updates(replay(make, folder))
        assert str(caught.value).startswith(f"replay: {files[1]}: ") and message in str(caught.value)


def test_an_episode_that_is_no_number(make, common_dump):
    edit_rows(common_dump / "update-000001.jsonl", lambda r: [{**r[0], "episode": "first"}, *r[1:]])
    with pytest.raises(UserError, match=r"update-000001\.jsonl: row 1: episode is 'first'; dump the run again"):
        replay(make, common_dump)


def test_the_order_of_the_rows_is_that_of_their_episodes(make, common_dump):
    trainer = replay(make, common_dump)
    expected, end = run_updates(trainer), weights(trainer)
    for path in common_dump.iterdir():
        edit_rows(path, lambda rows: rows[::-1])
    again = replay(make, common_dump)
    assert run_updates(again) == expected and torch.equal(weights(again), end)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("logprobs", float("nan"), "logprobs of token 1 is nan"),
        ("logprobs", float("-inf"), "logprobs of token 1 is -inf"),
        ("ref_logprobs", float("inf"), "ref_logprobs of token 1 is inf"),
        ("values", float("nan"), "values of token 1 is nan"),
        ("values", 1e39, "values of token 1 is 1e+39"),
        ("token_scores", None, "token_scores of token 1 is None"),
        ("score", float("inf"), "score is inf"),
    ],
)
def test_numbers_that_are_not_finite_are_the_dumps_fault(make, common_dump, column, value, message):
    path = common_dump / "update-000002.jsonl"

    def spoil(rows):
        zeros = [0.0] * len(rows[3]["response_ids"])
        rows[3][column] = value if column == "score" else [value, *(rows[3][column] or zeros)[1:]]
        return rows

    edit_rows(path, spoil)
    with pytest.raises(UserError) as caught:
        run_updates(replay(make, common_dump))
    assert str(caught.value).startswith(f"replay: {path}: episode 3: {message}, so it is the dump that is broken; ")


def test_values_that_no_critic_reads_may_be_anything(make, common_dump):
    for path in common_dump.iterdir():
        edit_rows(path, lambda rows: [{**row, "values": [float("nan")] * len(row["response_ids"])} for row in rows])
    with pytest.raises(UserError, match="episode 0: values of token 1 is nan"):
        replay(make, common_dump)
    assert len(run_updates(replay(make, common_dump, estimator="reinforce++"))) == 3


# ------------------------------------------------------------------------------------ another temperature, other weights


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_another_temperature_is_refused(make, both_dumps, kind):
    folder = both_dumps(kind)
    row = read_rows(folder / f"update-000001.{kind}")[0]
    assert (row["episodes"], row["temperature"], row["precision"]) == (8, 0.9, "fp32")
    with pytest.raises(UserError) as caught:
        replay(make, folder, temperature=2.0)
    assert str(caught.value) == (
        f"replay: {folder}/update-000001.{kind}: was sampled at temperature 0.9, and its log-probabilities are of that, but "
        "temperature is 2.0; give --temperature 0.9"
    )


def test_other_weights_are_told_once(make, common_dump, tmp_path):
    other = replay(make, common_dump, policy=str(save_policy(tmp_path / "other", seed=7)), epochs=1, minibatches=1)
    said = listen(other)
    history = run_updates(other)
    assert len(said) == 1 and said[0].count("\n") == 0
    match = re.fullmatch(
        r"WARNING: the replayed rollouts were sampled by other weights than those of `policy` \(largest difference of a "
        r"log-probability (\S+) nats\); the first steps are off-policy, so the updates are NOT those of the run that dumped it",
        said[0],
    )
    # All 8 episodes are compared, so the largest ratio of the one step is no further away.
    assert 0.1 < math.log(history[0]["policy/ratio_max"]) <= float(match[1]) * 1.01

    before = weights(same := replay(make, common_dump))
    said = listen(same)
    same.next_rollout()
    assert said == [] and torch.equal(weights(same), before)


@pytest.mark.parametrize(("difference", "told"), [(5e-4, []), (-2e-3, ["0.002"])])
def test_rounding_is_no_other_weights(make, common_dump, difference, told):
    def shift(rows):
        rows[5]["logprobs"][-1] += difference
        return rows

    edit_rows(common_dump / "update-000001.jsonl", shift)
    trainer = replay(make, common_dump)
    said = listen(trainer)
    trainer.next_rollout()
    assert [re.search(r"log-probability (\S+) nats", line)[1] for line in said] == told


def test_another_precision_is_no_other_weights(make, common_dump, runtime, monkeypatch):
    """A tenth of a nat where one of both runs is in bf16; an old dump does not say of itself."""

    def shift(rows):
        rows[5]["logprobs"][-1] += 0.05
        return rows

    path = common_dump / "update-000001.jsonl"
    edit_rows(path, shift)

    def told():
        trainer = replay(make, common_dump)
        said = listen(trainer)
        trainer.next_rollout()
        return said

    assert len(told()) == 1
    edit_rows(path, lambda rows: [{**row, "precision": "bf16"} for row in rows])
    assert told() == []
    edit_rows(path, lambda rows: without(rows, "temperature", "precision"))
    assert "by other weights, or at another temperature or in another precision, than those of `policy`" in told()[0]
    monkeypatch.setattr(runtime, "precision", "bf16")
    edit_rows(
        path,
        lambda rows: [
            row["logprobs"].append(row["logprobs"].pop() - 0.05 * (i == 5)) or row for i, row in enumerate(rows)
        ],
    )
    assert told() == []


def test_a_replay_from_another_checkpoint_is_told(make, dumped, runtime, tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", runtime)

    def keep(trainer):
        wake = trainer.update
        trainer.update = lambda rollout: (trainer.update_number == 1 and trainer.save(store), wake(rollout))[1]

    _, _, folder = dumped(prepare=keep)
    other = make(output_dir=str(tmp_path / "other"), seed=9, **SETTINGS)
    theirs = CheckpointStore(tmp_path / "theirs", runtime)
    other.sink = lambda number, metrics: number == 1 and other.save(theirs)
    other.train()
    for each, told in ((store, 0), (theirs, 1)):
        trainer = replay(make, folder / "update-000002.jsonl", replay_from=str(each.folder / "step-00000001"))
        said = listen(trainer)
        run_updates(trainer)
        assert len(said) == told and all("than those of `replay_from`" in line for line in said)


def test_the_stage_refuses_and_tells(folders, common_dump, tmp_path):
    """The command: exit code 2 and one sentence, or one line on stderr."""
    words = {"policy": save_policy(tmp_path / "other", seed=7), "reward": folders[1], "replay": common_dump}
    words |= {"updates": 3, "batch_size": 8, "precision": "fp32", "output_dir": tmp_path / "out"}
    flat = [w for key, value in words.items() for w in (f"--{key}", value)]
    refused = run_forked(flat, tmp_path / "logs")
    assert refused.codes == [2] and "was sampled at temperature 0.9, and its" in refused.say()
    done = run_whole([*flat, "--temperature", 0.9], tmp_path / "logs")
    assert [line.split(" (")[0] for line in done.say().splitlines() if "WARNING" in line] == [
        "[ppo] WARNING: the replayed rollouts were sampled by other weights than those of `policy`"
    ]
