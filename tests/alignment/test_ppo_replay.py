"""Dumped rollouts: they hold what happened to the bit, and training on them makes the same updates."""

import dataclasses
import json

import pytest
import torch

from alignment.ppo.dump import episode_rows, jsonl_text, parquet_bytes
from alignment.ppo.replay import find_dumps, read_rows
from launch.checkpoint import CheckpointStore
from launch.errors import UserError
from tests.alignment.ppo_support import run_updates, weights
from tests.alignment.replay_support import TokenRewards, listen, replay
from tests.forked import run_whole
from tests.support import word_tokenizer


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_replay_makes_the_same_updates_to_the_bit(make, dumped, kind):
    history, end, folder = dumped(kind)
    trainer = replay(make, folder)
    said = listen(trainer)
    assert trainer.source is None and trainer.reference is None and trainer.prompts == []
    assert run_updates(trainer) == history
    assert torch.equal(weights(trainer), end) and said == []


@pytest.mark.parametrize(
    "changes",
    [
        {"rollouts_ahead": 1, "learning_rate": 0.01},
        {"estimator": "grpo", "samples_per_prompt": 2, "kl_in": "loss"},
        {"source": TokenRewards()},
    ],
    ids=["importance", "no critic", "token rewards"],
)
def test_replay_of_what_not_every_run_has(make, dumped, changes):
    history, end, folder = dumped(**changes)
    kept = {name: value for name, value in changes.items() if name != "source"}
    trainer = replay(make, folder, **kept)
    said = listen(trainer)
    assert run_updates(trainer) == history
    assert torch.equal(weights(trainer), end) and said == []


def test_replay_of_one_update_from_the_middle_of_a_run(make, dumped, runtime, tmp_path):
    """Update 3 alone, from the checkpoint of update 2: weights, optimizer, KL weight, score moments, order and rate."""
    store = CheckpointStore(tmp_path / "checkpoints", runtime)

    def keep(trainer):
        wake = trainer.update
        trainer.update = lambda rollout: (trainer.update_number == 2 and trainer.save(store), wake(rollout))[1]

    history, end, folder = dumped(prepare=keep)
    file = folder / "update-000003.jsonl"
    start = str(store.folder / "step-00000002")
    trainer = replay(make, file, replay_from=start)
    said = listen(trainer)
    assert (trainer.update_number, trainer.updates, trainer.replay.warning) == (2, 3, None)
    assert run_updates(trainer) == history[2:]
    assert torch.equal(weights(trainer), end) and said == []

    alone = replay(make, file)
    said = listen(alone)
    assert "NOT those of the run" in alone.replay.warning and "--replay_from" in alone.replay.warning
    run_updates(alone)
    assert not torch.equal(weights(alone), end) and said == []  # the one warning says all

    with pytest.raises(UserError, match="is of update 2, but the first rollout is that of update 2"):
        replay(make, folder / "update-000002.jsonl", replay_from=start)
    with pytest.raises(UserError, match=r"replay_from: .*it has no manifest"):
        replay(make, file, replay_from=str(folder))
    with pytest.raises(UserError, match="does not fit the models of this run"):
        replay(make, file, replay_from=start, estimator="reinforce++")
    with pytest.raises(ValueError, match="replay_from: is not read without a replay"):
        make(replay_from=start)


def test_the_stage_says_that_a_replay_from_the_middle_is_another_update(folders, common_dump, tmp_path):
    words = {"policy": folders[0], "reward": folders[1], "replay": common_dump / "update-000003.jsonl", "updates": 3}
    words |= {"output_dir": tmp_path / "out", "batch_size": 8, "precision": "fp32", "temperature": 0.9}
    done = run_whole([w for key, value in words.items() for w in (f"--{key}", value)], tmp_path / "logs")
    assert "the replay begins at update 3" in done.say()


def test_a_replay_that_needs_groups_of_a_dump_without(make, common_dump):
    trainer = replay(make, common_dump, estimator="grpo", samples_per_prompt=2)
    with pytest.raises(UserError, match=r"update-000001\.jsonl: holds a prompt with one response, and estimator grpo"):
        run_updates(trainer)


def without_alarms(history):
    """Monitors count alarms over the updates that they have seen."""
    return [{name: value for name, value in row.items() if name != "monitor/alarms"} for row in history]


def test_replay_of_a_run_that_was_rolled_back(make, dumped):
    """Its learning rates were lowered, and are so in the replay."""

    def lower(trainer):
        trainer.monitors.rollbacks = 1

    plain, _, _ = dumped()
    lowered, end, folder = dumped(prepare=lower)
    trainer = replay(make, folder)
    found = [row["train/lr"] for row in run_updates(trainer)]
    assert found == [row["train/lr"] for row in lowered] == [row["train/lr"] / 2 for row in plain]
    assert torch.equal(weights(trainer), end)


def test_replay_with_another_loss_and_learning_rate(make, dumped):
    _, end, folder = dumped()
    changes = dict(learning_rate=3e-3, clip=0.05, value_clip=None, loss_mean="sequence_mean", epochs=1, minibatches=1)
    changed = replay(make, folder, **changes)
    history = run_updates(changed)
    assert len(history) == 3 and not torch.equal(weights(changed), end)
    # Off-policy from the second update on: the ratio is to the policy that was dumped.
    assert history[0]["policy/approx_kl"] < 1e-9 < 1e-4 < history[1]["policy/approx_kl"]


def test_a_dump_is_the_same_whenever_it_is_made_and_cut_back_on_resume(make, dumped, tmp_path):
    _, _, folder = dumped()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == [f"update-00000{i}.jsonl" for i in (1, 2, 3)]
    (folder / "update-000007.jsonl").write_text("of an earlier session")
    (folder / "notes.txt").write_text("of the user")
    _, _, again = dumped()
    after = {path.name: path.read_bytes() for path in again.iterdir()}
    assert after.pop("notes.txt") == b"of the user" and after == before


def test_rows_say_what_was_asked_answered_and_paid(make, runtime):
    trainer = make()
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    rows = episode_rows(rollout, word_tokenizer())
    for i, row in enumerate(rows):
        assert row["prompt_ids"] + row["response_ids"] == rollout.sequences[i]
        assert row["prompt"] == rollout.prompts[i]["prompt"] and row["row"]["number"] == rollout.prompts[i]["number"]
        assert row["finished"] == row["response"].endswith("<eos>") == bool(rollout.finished_B[i])
        assert torch.equal(torch.tensor(row["logprobs"]), rollout.flat(rollout.logprobs_BT, [i]))
        assert row["score"] == float(rollout.scores_B[i]) == row["components"]["model"]
        assert row["engine_logprobs"] is row["token_scores"] is None


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_float32_survives_to_the_bit(make, tmp_path, kind):
    trainer = make()
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    bits = torch.randint(0, 2**32, rollout.mask_BT.shape, generator=torch.Generator().manual_seed(0))
    odd_BT = (bits - 2**31).to(torch.int32).view(torch.float32).nan_to_num(1e-45)  # any number there is, subnormal too
    odd_BT[0, 0], odd_BT[1, 0] = -0.0, float("inf")
    rollout.logprobs_BT = torch.where(rollout.mask_BT.bool(), odd_BT, 0.0)
    common = {"update": 1, "room": 9, "kl": {"coef": 0.1}, "normaliser": {"count": 0, "mean": 0.1, "deviations": 0.0}}
    rows = [{**common, **row} for row in episode_rows(rollout, word_tokenizer())]
    path = tmp_path / f"update-000001.{kind}"
    path.write_bytes(parquet_bytes(rows) if kind == "parquet" else jsonl_text(rows).encode())
    read = read_rows(path)
    assert read[0]["normaliser"] == common["normaliser"] and read[0]["kl"] == common["kl"]
    for before, after in zip(rows, read, strict=True):
        a, b = torch.tensor(before["logprobs"]), torch.tensor(after["logprobs"])
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_replay_needs_no_prompts_no_source_and_no_reference(make, common_dump):
    trainer = replay(make, common_dump)
    assert trainer.roles.reference is None and trainer.scorer is None
    config = dataclasses.replace(trainer.config, reward=None, prompts="", critic_from="policy")
    config.check()
    assert config.sources == {}
    with pytest.raises(ValueError, match="prompts is missing"):
        dataclasses.replace(config, replay=None).check()
    with pytest.raises(ValueError, match="reward is missing"):
        dataclasses.replace(config, replay=None, prompts="-").check()


def edit(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("spoil", "changes", "message"),
    [
        (lambda f: (f / "update-000002.jsonl").unlink(), {}, "the rollout of update 2 is missing"),
        (lambda f: [p.unlink() for p in f.iterdir()], {}, "no update-000001.jsonl or the like there"),
        (lambda f: (f / "update-000001.parquet").touch(), {}, "holds update-000001.jsonl and update-000001.parquet"),
        (lambda f: (f / "update-000001.jsonl").write_text('{"update": 1'), {}, "cannot be read"),
        (lambda f: (f / "update-000001.jsonl").write_text(""), {}, "is empty"),
        (lambda f: edit(f / "update-000001.jsonl", lambda r: r[3].pop("score")), {}, "row 4: score is missing"),
        (lambda f: edit(f / "update-000001.jsonl", lambda r: r[1].update(update=2)), {}, "row 2: is of update 2"),
        (
            lambda f: edit(f / "update-000001.jsonl", lambda r: r[0]["values"].pop()),
            {},
            "values for .* response tokens",
        ),
        (
            lambda f: edit(f / "update-000001.jsonl", lambda r: r[0].update(response="x")),
            {},
            "not of the policy's token",
        ),
        (
            lambda f: edit(f / "update-000001.jsonl", lambda r: r[0]["prompt_ids"].append(99)),
            {},
            "not of the policy's tok",
        ),
        (lambda f: None, {"minibatches": 8, "batch_size": 64, "kl_horizon": 64}, None),
        (lambda f: None, {"minibatches": 3, "batch_size": 9}, "8 episodes; minibatches must divide that"),
        (
            lambda f: edit(f / "update-000001.jsonl", lambda r: [x.update(logprobs=None) for x in r]),
            {},
            "row 1: logprobs is missing",
        ),
        (
            lambda f: [edit(p, lambda r: [x.update(values=None) for x in r]) for p in f.iterdir()],
            {},
            "without a critic's",
        ),
        (lambda f: (f / "update-000001.jsonl").unlink(), {"updates": 1}, "is update 2, but updates is 1"),
    ],
)
def test_a_dump_that_cannot_be_used_is_named(make, common_dump, spoil, changes, message):
    folder = common_dump
    spoil(folder)
    if message is None:
        assert len(run_updates(replay(make, folder, **changes))) == 3
        return
    with pytest.raises(UserError, match=message) as caught:
        run_updates(replay(make, folder, **changes))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_later_dump_that_is_cut_off_is_named_before_anything_is_trained(make, both_dumps, kind):
    path = both_dumps(kind) / f"update-000003.{kind}"
    whole = path.read_bytes()
    if kind == "jsonl":
        lines = whole.splitlines(keepends=True)
        broken = {b"".join(lines[:-1]): r"does not hold its 8 episodes.*missing: 7\)", whole[:-9]: "cannot be read"}
        broken |= {b"".join([*lines, lines[0]]): r"more than once: 0\)", b"": "is empty"}
    else:
        broken = {whole[:-9]: "cannot be read", parquet_bytes(read_rows(path)[1:]): r"missing: 0\)"}
    for content, message in broken.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            replay(make, path.parent)
        assert str(path) in str(caught.value)
    replay(make, path.parent, updates=2)  # which does not read it
    path.write_bytes(whole)
    assert len(run_updates(replay(make, path.parent))) == 3


def test_a_single_file_or_a_folder(common_dump):
    assert list(find_dumps(common_dump)) == [1, 2, 3]
    assert list(find_dumps(common_dump / "update-000002.jsonl")) == [2]
