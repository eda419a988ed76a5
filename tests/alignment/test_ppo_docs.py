"""docs/ppo.md: its Python runs as it stands, and every metric that a run logs is in its table."""

import re

import pytest

from alignment.ppo.estimators import ESTIMATORS
from tests.support import ROOT, save_policy, save_reward

TEXT = (ROOT / "docs" / "ppo.md").read_text()


def documented():
    """Patterns of the metrics in the table; NAME and ... stand for any text."""
    table = TEXT.split("## Logged metrics")[1].split("\n## ")[0]
    names = [
        n for line in table.splitlines() if line[:3] == "| `" for n in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    return [re.escape(n).replace("NAME", "[^/]+").replace(r"\.\.\.", ".+") for n in names]


def is_documented(name):
    return any(re.fullmatch(pattern, name) for pattern in documented())


def test_the_python_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_policy(tmp_path / "runs" / "sft"), save_reward(tmp_path / "runs" / "reward")
    names = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.S)[1], names)
    assert names["trainer"].update_number == 1
    assert {"policy/loss", "kl/k1", "reward/reward"} & set(names["metrics"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kl_in": "loss", "kl_kind": "k3"},
        {"rollouts_ahead": 1},
        {"estimator": "rloo", "samples_per_prompt": 2},
    ],
)
def test_every_logged_metric_is_explained(make, changes):
    trainer = make(**changes)
    rollout = trainer.next_rollout()
    rollout = trainer.advantages(trainer.score(rollout))
    metrics = trainer.log(rollout, trainer.update(rollout))
    assert len(metrics) > 15
    assert [name for name in metrics if not is_documented(name)] == []


def test_ptx_metrics_are_explained():
    assert is_documented("ptx/loss") and is_documented("ptx/grad_norm_ratio") and not is_documented("ptx/other")


def test_every_estimator_is_in_the_table():
    table = TEXT.split("## The relatives")[1].split("\n## ")[0]
    assert {n for n in re.findall(r"^\| `([^`]+)`", table, re.M)} == {"estimator", *ESTIMATORS}
