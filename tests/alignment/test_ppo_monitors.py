"""The monitors of PPO: the state machine by brute force, each monitor by a fault in a real run, and each action."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.ppo import STAGE
from alignment.ppo.config import PPOConfig
from alignment.ppo.evaluation import HeldOut
from alignment.ppo.guard import Guard
from alignment.ppo.monitors import MONITORS, Alarm, Monitors
from alignment.ppo.options import EvaluationOptions, MonitorsOptions
from alignment.ppo.trainer import PPOTrainer
from alignment.reward.sources.protocol import single
from launch.checkpoint import CheckpointStore
from launch.config import build, identity_dict
from launch.errors import UserError
from launch.stage import Job, run_stage
from tests.alignment.ppo_support import TokenReward, prompt_rows, run_updates
from tests.support import read_metrics, save_policy, save_prompts


def options(**each):
    """Monitors that are all off but those given by their options."""
    off = {name: {"action": "off"} for name in MONITORS}
    return build(MonitorsOptions, {**off, **each}, "test", "monitors.")


# ---------------------------------------------------------------------------------------------- pure


@given(st.lists(st.sampled_from([0.0, 2.0, None]), max_size=14), st.integers(1, 4), st.sampled_from(["warn", "stop"]))
def test_alarms_by_brute_force(values, patience, action):
    """An alarm stands where the last `patience` readings were faults; a warning is given where it begins."""
    monitors = Monitors(options(kl={"action": action, "threshold": 1.0, "patience": patience}))
    readings = []
    for update, value in enumerate(values, 1):
        alarms = monitors.observe(update, {} if value is None else {"kl/k1": value})
        if value is not None:
            readings.append((update, value))
        last = [v for _, v in readings[-patience:]]
        stands = value is not None and len(last) == patience and min(last) > 1
        begins = stands and not (len(readings) > patience and readings[-patience - 1][1] > 1)
        assert bool(alarms) == (begins if action == "warn" else stands)
        healthy = [u for u, v in readings if v <= 1]
        if alarms:
            assert (alarms[0].update, alarms[0].value) == (update, 2.0)
            assert alarms[0].since == (healthy[-1] + 1 if healthy else readings[0][0])
            assert alarms[0].sound == alarms[0].since - 2  # the KL is that of the weights before the update
        monitors_again = Monitors(monitors.options)
        monitors_again.load_state_dict(json.loads(json.dumps(monitors.state_dict())))
        assert monitors_again == monitors


def test_ratios_are_to_the_first_updates():
    monitors = Monitors(options(entropy={"threshold": 0.5, "patience": 1}, length={"patience": 1}, first_updates=2))

    def observe(update, entropy, length):
        metrics = {"policy/entropy": entropy, "rollout/length": length, "reward/score": 0.0}
        return [(a.monitor, a.value) for a in monitors.observe(update, metrics)]

    assert observe(1, 3.0, 4.0) == observe(2, 1.0, 12.0) == []  # means 2 and 8
    assert observe(3, 1.01, 15.9) == []
    assert observe(4, 0.8, 17.0) == [("entropy", 0.4), ("length", 17 / 8)]
    assert observe(5, 1.5, 3.2) == []  # a drift that goes on is told once: 8 / 3.2 is another side of the same
    assert observe(6, 1.5, 8.0) == []
    assert observe(7, 1.5, 2.0) == [("length", 4.0)]


def test_negative_kl_counts_when_it_is_clear():
    monitors = Monitors(options(kl_negative={"threshold": 0.1, "patience": 1}))
    noisy, small, clear = (-2.0, 0.7), (-0.05, 0.0), (-0.5, 0.1)
    for update, (kl, stderr) in enumerate((noisy, small, clear), 1):
        alarms = monitors.observe(update, {"kl/k1": kl, "kl/k1_stderr": stderr})
        assert [round(a.value, 6) for a in alarms] == ([0.2] if kl == -0.5 else [])


def gold_row(proxy, low, high):
    return {"gold_reward": 0.0, "proxy_reward_since_peak": proxy, "gold_reward_since_peak_ci_high": high}


def test_hacking_is_the_proxy_up_and_gold_clearly_down():
    monitors = Monitors(options(reward_hacking={"action": "rollback"}))
    assert monitors.observe(0, {}, {"gold_reward": 1.0}) == []
    assert monitors.observe(10, {}, gold_row(1.0, -2.0, 0.1)) == []  # not clear
    assert monitors.observe(20, {}, gold_row(-1.0, -2.0, -0.5)) == []  # the proxy fell, too
    assert monitors.observe(25, {"kl/k1": 0.0}) == []
    (alarm,) = monitors.observe(30, {}, gold_row(1.0, -2.0, -0.5))
    assert (alarm.since, alarm.update, alarm.value) == (21, 30, 0.5)  # somewhere after the last healthy evaluation
    assert alarm.sound == monitors.sound_until == 20


def test_disagreement_counts_while_the_reward_is_up():
    monitors = Monitors(options(disagreement={"patience": 1}, first_updates=1))

    def observe(update, reward, spread):
        return monitors.observe(update, {"reward/score": reward, "reward/e/disagreement": spread})

    assert observe(1, 1.0, 0.2) == observe(2, 0.9, 0.9) == observe(3, 1.1, 0.3) == []
    assert [a.value for a in observe(4, 1.1, 0.5)] == [2.5]


def test_a_changed_threshold_judges_the_last_readings_anew():
    strict = Monitors(options(kl={"action": "stop", "threshold": 1.0}))
    strict.observe(1, {"kl/k1": 0.5})
    assert strict.observe(2, {"kl/k1": 3.0})
    state = strict.state_dict()
    for threshold, stands in ((1.0, True), (2.9, True), (3.0, False)):
        monitors = Monitors(options(kl={"action": "stop", "threshold": threshold}))
        monitors.load_state_dict(state)
        assert bool(monitors.standing()) == stands
    off = Monitors(options())
    off.load_state_dict(state)
    assert off.standing() == [] and off.metrics() == {}


def test_sentences_name_monitor_value_threshold_and_update():
    monitors = Monitors(options(explained_variance={"action": "stop", "patience": 2}))
    monitors.observe(6, {"critic/explained_variance": -0.5})
    (alarm,) = monitors.observe(7, {"critic/explained_variance": -0.25})
    expected = "update 7: monitor explained_variance: the explained variance is -0.25, below 0 since update 6"
    assert alarm.sentence == expected


def test_thresholds_are_no_part_of_a_runs_identity_and_what_a_rollback_does_is():
    def identity(**monitors):
        values = {"policy": "p", "reward": "r", "prompts": "x", "monitors": monitors}
        return identity_dict(build(PPOConfig, values, "recipe.yaml"))

    assert identity() == identity(kl={"threshold": 9.0, "action": "stop", "patience": 3}, rollbacks=5)
    assert identity() != identity(rollback_factor=0.1)
    for monitors, message in (
        ({"kl": {"patience": 0}}, "monitors.kl.patience: 0 is below 1"),
        ({"rollback_factor": 0.0}, "monitors.rollback_factor: 0.0 is outside"),
        ({"kll": {}}, "unknown key 'monitors.kll'; did you mean 'kl'"),
        ({"kl": {"action": "panic"}}, "monitors.kl.action: 'panic' is not one of"),
    ):
        with pytest.raises(UserError, match=message):
            identity(**monitors)


# ---------------------------------------------------------------------------------------------- faults in real runs

LEARNS = dict(
    updates=14, batch_size=16, micro_batch_size=16, forward_batch_size=16, learning_rate=5e-3, kl_coef=0.0,
    missing_eos="none", critic_from="policy",
)  # fmt: skip


class Pays(TokenReward):
    """A source that pays by a rule of the completion's token ids."""

    def __init__(self, rule, **extras):
        self.rule, self.extras = rule, extras

    def score(self, episodes):
        ids = [list(each) for each in episodes.completion_ids]
        extras = {name: torch.tensor([float(rule(each)) for each in ids]) for name, rule in self.extras.items()}
        return single(self.name, torch.tensor([float(self.rule(each)) for each in ids]), **extras)


def alarms_of(trainer):
    """monitor -> its first alarm, of a whole run."""
    found = {}
    history = []

    def sink(number, metrics):
        history.append(metrics)
        for alarm in trainer.alarms:
            found.setdefault(alarm.monitor, alarm)

    trainer.sink = sink
    trainer.train()
    return found, history


def test_a_healthy_run_has_no_alarm(make):
    monitors = MonitorsOptions()
    monitors.missing_eos.action = "off"  # a random policy does not end
    calm = {"learning_rate": 1e-4, "critic_learning_rate": 3e-3, "critic_from": "reward"}
    found, history = alarms_of(make(**{**LEARNS, **calm}, monitors=monitors))
    assert found == {} and all(row["monitor/alarms"] == 0 for row in history)


def test_a_reward_for_length(make):
    """Responses grow, and no longer end."""
    each = {"length": {"threshold": 1.2, "patience": 1}, "missing_eos": {"threshold": 0.7, "patience": 1}}
    settings = {**LEARNS, "max_new_tokens": 24}
    found, history = alarms_of(make(Pays(len), **settings, monitors=options(**each, first_updates=2)))
    assert found["length"].value == pytest.approx(
        history[found["length"].update - 1]["rollout/length"] / (sum(r["rollout/length"] for r in history[:2]) / 2)
    )
    assert found["missing_eos"].value == history[found["missing_eos"].update - 1]["rollout/missing_eos_rate"] > 0.7
    assert history[0]["rollout/missing_eos_rate"] < 0.7


def test_a_reward_that_a_judge_does_not_share_and_members_dispute(make):
    """The policy learns to say token 7 alone: entropy falls, KL grows, the judge disagrees, and so does the ensemble."""
    each = {
        "kl": {"threshold": 2.0}, "entropy": {"threshold": 0.9, "patience": 1}, "reward_hacking": {},
        "disagreement": {"threshold": 1.5, "patience": 1},
    }  # fmt: skip
    source = Pays(lambda ids: ids.count(7), disagreement=lambda ids: 0.1 + ids.count(7))
    held_out = HeldOut(prompt_rows(), Pays(lambda ids: -ids.count(7)))
    monitors, evaluation = options(**each, first_updates=2), EvaluationOptions(every=4)
    settings = {**LEARNS, "learning_rate": 1e-2}
    trainer = make(source, held_out=held_out, evaluation=evaluation, monitors=monitors, **settings)
    found, history = alarms_of(trainer)
    assert set(found) == set(each)
    hacking = found["reward_hacking"]
    assert (
        hacking.update in (4, 8, 12, 14)
        and hacking.since == [0, 4, 8, 12, 14][([4, 8, 12, 14]).index(hacking.update)] + 1
    )
    row = next(r for r in trainer.history.rows if r["step"] == hacking.update)
    assert row["gold_reward_since_peak_ci_high"] == -hacking.value < 0 < row["proxy_reward_since_peak"]
    assert history[0]["monitor/alarms"] == 0 and history[-1]["monitor/alarms"] == 4


def test_steps_that_are_far_too_large(make):
    each = {"clip_fraction": {"threshold": 0.4, "patience": 1}, "kl": {"threshold": 5.0}}
    settings = {**LEARNS, "learning_rate": 0.05, "updates": 4, "epochs": 4}
    found, _ = alarms_of(make(TokenReward(), **settings, monitors=options(**each)))
    assert set(found) == set(each) and found["clip_fraction"].update == 1


def test_a_policy_that_learns_nothing_any_more(make):
    settings = {
        **LEARNS,
        "estimator": "rloo",
        "samples_per_prompt": 2,
        "kl_coef": 0.0,
        "missing_eos": "none",
        "updates": 3,
    }
    settings = {k: v for k, v in settings.items() if "critic" not in k and "value" not in k}
    found, history = alarms_of(make(TokenReward(token=-1), **settings, monitors=options(gradient={})))
    assert [row["train/grad_norm"] for row in history] == [0, 0, 0]
    assert found["gradient"].update == 2
    found, history = alarms_of(make(TokenReward(), **settings, monitors=options(gradient={})))
    assert found == {} and min(row["train/grad_norm"] for row in history) > 0


def test_a_critic_that_runs_away(make):
    each = {"explained_variance": {"threshold": 0.0, "patience": 3}}
    settings = {**LEARNS, "critic_learning_rate": 0.5, "learning_rate": 1e-5, "updates": 8, "value_clip": None}
    found, history = alarms_of(make(TokenReward(), **settings, monitors=options(**each)))
    alarm = found["explained_variance"]
    assert alarm.since == alarm.update - 2
    assert all(history[u - 1]["critic/explained_variance"] < 0 for u in range(alarm.since, alarm.update + 1))


def test_samples_of_another_model_make_the_kl_negative(make, tmp_path):
    """The bug: responses are drawn by the reference (say, weights that were not synchronised), not by the policy."""
    other = save_policy(tmp_path / "other", seed=7)
    trainer = make(TokenReward(), reference=str(other), **LEARNS | {"updates": 2}, monitors=options(kl_negative={}))
    trainer.sampler.sync = lambda: trainer.reference.policy
    found, history = alarms_of(trainer)
    assert found["kl_negative"].update == 2 and history[1]["kl/k1"] < -0.1
    honest = make(TokenReward(), reference=str(other), **LEARNS | {"updates": 2}, monitors=options(kl_negative={}))
    found, history = alarms_of(honest)
    assert found == {} and history[1]["kl/k1"] > 0


# ---------------------------------------------------------------------------------------------- actions, through the stage


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    (root / "pays.py").write_text(
        "def length(completion_ids):\n    return [len(ids) for ids in completion_ids]\n"
        "def sevens(completion_ids):\n    return [ids.count(7) for ids in completion_ids]\n"
    )
    return save_policy(root / "policy"), save_prompts(root / "prompts.jsonl"), root / "pays.py"


@pytest.fixture
def run(inputs, tmp_path):
    """run(folder, monitors, **changes) -> the provenance of a run of the stage."""

    def start(name, monitors, pays="sevens", **changes):
        policy, prompts, functions = inputs
        values = {
            "policy": str(policy), "prompts": str(prompts), "rewards": {"fn": {"function": f"{functions}:{pays}"}},
            "output_dir": str(tmp_path / name), "monitors": monitors, "precision": "fp32", "max_new_tokens": 6,
            **LEARNS, "updates": 8, **changes,
        }  # fmt: skip
        return run_stage(STAGE, build(PPOConfig, values, "test"))

    return start


OFF = {name: {"action": "off"} for name in MONITORS}


def test_stop_ends_in_order_and_goes_on_when_the_threshold_is_raised(run, tmp_path, capsys):
    strict = {**OFF, "kl": {"action": "stop", "threshold": 1.0}}
    with pytest.raises(UserError) as stopped:
        run("stopped", strict)
    folder = tmp_path / "stopped"
    rows = read_metrics(folder)
    last = rows[-1]["step"]
    assert rows[-1]["kl/k1"] > 1.0 > rows[-2]["kl/k1"] and last < 8
    assert str(stopped.value) == (
        f"update {last}: monitor kl: the sequence KL to the reference, in nats, is {rows[-1]['kl/k1']:.4g}, above 1; the run "
        f"stops with a checkpoint of update {last}, and there is no artefact: to go on, raise monitors.kl.threshold or set "
        "monitors.kl.action to warn, and run the command again"
    )
    assert not (folder / "provenance.json").exists() and not (folder / "model.safetensors").exists()
    (alarm,) = [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]
    assert (alarm["monitor"], alarm["done"], alarm["update"]) == ("kl", "stopped", last)

    told = (folder / "alarms.jsonl").read_text()
    (folder / "alarms.jsonl").write_text(told + '{"update": 99}\n')  # as a run that had come further would have left it
    with pytest.raises(UserError, match=f"update {last}: monitor kl: "):  # nothing has changed, so nothing is done
        run("stopped", strict)
    assert read_metrics(folder) == rows and (folder / "alarms.jsonl").read_text() == told

    provenance = run("stopped", {**OFF, "kl": {"action": "stop", "threshold": 1e6}})
    run("whole", {**OFF, "kl": {"action": "warn", "threshold": 1e6}})
    assert provenance["summary"]["alarms"] == 1
    ours, theirs = ([{**row, "monitor/alarms": 0} for row in read_metrics(tmp_path / n)] for n in ("stopped", "whole"))
    assert ours == theirs
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_warn_says_so_once_and_changes_nothing(run, tmp_path, capsys):
    run("warned", {**OFF, "kl": {"action": "warn", "threshold": 1.0}})
    said = capsys.readouterr().err
    assert said.count("monitor kl: the sequence KL") == 1
    run("plain", OFF)
    ours, theirs = read_metrics(tmp_path / "warned"), read_metrics(tmp_path / "plain")
    assert [{k: v for k, v in row.items() if k != "monitor/alarms"} for row in ours] == theirs
    assert len((tmp_path / "warned" / "alarms.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "plain" / "alarms.jsonl").exists()


ROLLS = {**OFF, "kl": {"action": "rollback", "threshold": 1.0}, "rollback_every": 2, "rollbacks": 20}


class Killed(BaseException):
    pass


def test_rollback_returns_to_before_the_fault_with_a_lower_rate(run, tmp_path, capsys, monkeypatch):
    """And a kill at any moment of it changes nothing of the outcome."""
    short = {"updates": 6}
    provenance = run("whole", ROLLS, **short)
    rows = read_metrics(tmp_path / "whole")
    steps = [row["step"] for row in rows]
    back = [i for i in range(1, len(steps)) if steps[i] <= steps[i - 1]]
    assert back and rows[-1]["step"] == 6 and rows[-1]["monitor/rollbacks"] == len(back)
    for number, i in enumerate(back, 1):
        fault, again = rows[i - 1], rows[i]
        assert fault["kl/k1"] > 1.0 and again["monitor/rollbacks"] == number
        assert again["step"] == (fault["step"] - 2) // 2 * 2 + 1  # after the newest anchor whose own KL was in bounds
        assert again["train/lr"] == pytest.approx(5e-3 * 0.5**number * (1 - (again["step"] - 1) / 6))
        before = [row for row in rows[:i] if row["step"] == again["step"]][-1]  # from the same weights
        assert again["reward/score"] == before["reward/score"] and again["policy/loss"] != before["policy/loss"]
    told = [json.loads(line) for line in (tmp_path / "whole" / "alarms.jsonl").read_text().splitlines()]
    assert [row["done"] for row in told] == ["rolled back"] * len(back) and told[-1]["rate_factor"] == 0.5 ** len(back)
    assert provenance["summary"]["alarms"] == len(back)
    assert f"rolled back to update {told[0]['to']}, learning rates times 0.5" in capsys.readouterr().err

    def dies(owner, name, at):
        calls = 0
        action = getattr(owner, name)

        def act(*args, **named):
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return action(*args, **named)

        return act

    placed = set()

    def dies_in_exchange(source, target, plain=os.rename):
        """The old anchor has left its place, and the one with the roll-back in it has not taken it."""
        if Path(source).name.startswith(".tmp-") and target in placed:
            raise Killed
        placed.add(target)
        plain(source, target)

    for owner, name, at in (
        (CheckpointStore, "discard_after", 1),
        (CheckpointStore, "save", len([s for s in steps[: back[0] - 1] if s % 2 == 0]) + 2),  # that of the roll-back
        (CheckpointStore, "_commit", None),  # in the exchange of the anchor for itself
        (Job, "log", back[0] + 2),
    ):
        folder = f"{name}-{at}"
        with monkeypatch.context() as patch:
            if at is None:
                patch.setattr(os, "rename", dies_in_exchange)
            else:
                patch.setattr(owner, name, dies(owner, name, at))
            with pytest.raises(Killed):
                run(folder, ROLLS, **short)
        capsys.readouterr()
        run(folder, ROLLS, **short)
        done = (
            1 if name in ("log", "_commit") else 0
        )  # a roll-back that was made is in a checkpoint, and not made again
        assert capsys.readouterr().err.count("rolled back to") == len(back) - done, name
        assert read_metrics(tmp_path / folder) == rows, name
        assert (tmp_path / folder / "alarms.jsonl").read_text() == (tmp_path / "whole" / "alarms.jsonl").read_text()


def test_a_kill_right_after_a_rollback_resumes_with_the_lower_rate(make, runtime, tmp_path):
    """What it returned to is saved anew with the roll-back in it, before a word is said."""

    def say(text):
        raise Killed

    settings = dict(monitors=options(kl={"action": "rollback"}, rollback_every=2), updates=4)
    trainer, store = make(**settings), CheckpointStore(tmp_path, runtime, keep=4)
    trainer.sink = lambda number, metrics: trainer.save(store)
    trainer.train()
    trainer.alarms = [Alarm("kl", "rollback", update=4, since=4, sound=3, value=99.0, threshold=1.0)]
    with pytest.raises(Killed):
        Guard(trainer, store, say).act()
    resumed = make(**settings)
    resumed.load(store.latest())
    assert (resumed.update_number, resumed.monitors.rollbacks, resumed.monitors.rate_factor) == (2, 1, 0.5)
    assert [(row["done"], row["to"]) for row in resumed.monitors.told] == [("rolled back", 2)]
    assert run_updates(resumed)[0]["train/lr"] == pytest.approx(1e-3 * 0.5 * (1 - 2 / 4))


def test_dumps_of_what_a_rollback_undid_are_gone(run, tmp_path, monkeypatch):
    """Right after it, and not only once they are written anew: the run may end before that."""
    seen = []

    def keep(store, step, plain=CheckpointStore.discard_after):
        plain(store, step)
        seen.append(step)

    monkeypatch.setattr(CheckpointStore, "discard_after", keep)
    plain_save = PPOTrainer.save

    def save(trainer, store):
        if seen:
            numbers = [int(p.stem.removeprefix("update-")) for p in (tmp_path / "out" / "rollouts").iterdir()]
            assert max(numbers, default=0) <= trainer.update_number
        return plain_save(trainer, store)

    monkeypatch.setattr(PPOTrainer, "save", save)
    run("out", ROLLS, dump_rollouts="jsonl")
    assert seen


def test_rollbacks_come_to_an_end(run, tmp_path):
    with pytest.raises(UserError, match=r"after 1 roll-backs the run stops with a checkpoint of update \d"):
        run("out", {**ROLLS, "rollbacks": 1, "rollback_factor": 1.0})
    rows = read_metrics(tmp_path / "out")
    again = next(i for i in range(1, len(rows)) if rows[i]["step"] <= rows[i - 1]["step"])
    for a, b in zip(rows[again:], rows[rows[again]["step"] - 1 : again], strict=True):  # the same rate: the same fault
        assert {**a, "monitor/rollbacks": 0} == b


def test_the_anchor_of_a_rollback_outlives_rotation(run, tmp_path, monkeypatch):
    """Patience of 3 updates, a checkpoint at each: the one from before the fault is older than the two that are kept."""
    monitors = {**ROLLS, "kl": {"action": "rollback", "threshold": 1.0, "patience": 4}, "rollbacks": 1}
    with pytest.raises(UserError, match="after 1 roll-backs"):
        run("out", monitors, checkpoint_steps=1, updates=16)
    told = [json.loads(line) for line in (tmp_path / "out" / "alarms.jsonl").read_text().splitlines()]
    assert told[0]["done"] == "rolled back" and told[0]["to"] == (told[0]["since"] - 2) // 2 * 2 < told[0]["update"] - 3
