"""The demo's benchmark on a lifecycle of seconds: what it records, and when it says that a promise was not kept."""

import json

import pytest
import yaml

from benchmarks import demo
from launch.files import read_json
from tests.evaluation import tiny
from tests.evaluation.rows import write_completions

PROMPTS = [f"prompt {n}: " for n in range(16)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A judge, a policy that wins against its baseline on every prompt, and a report."""
    root = tmp_path_factory.mktemp("standin")
    for name, model in (
        ("judge", tiny.reward_model(2)),
        ("ppo", tiny.language_model(0)),
        ("sft", tiny.language_model(1)),
    ):
        model.save_pretrained(root / name)
        tiny.tokenizer().save_pretrained(root / name)
    judge = tiny.reward_model(2)
    from evaluation.scoring import score_ids

    texts = ["quiet words", "other words"]
    better = [[], []]
    for prompt in PROMPTS:
        ids = [tiny.tokenizer()(prompt + text)["input_ids"] + [257] for text in texts]
        order = score_ids(judge, ids).argsort(descending=True).tolist()
        for side, index in enumerate(order):
            better[side].append({"prompt": prompt, "completion": texts[index]})
    for side, name in enumerate(("won", "lost")):
        write_completions(root / f"{name}.jsonl", better[side])
    config = {
        "mode": "win-rate", "name": "ppo", "completions": str(root / "won.jsonl"), "baseline": str(root / "lost.jsonl"),
        "baseline_name": "sft", "judge": str(root / "judge"), "policy": str(root / "ppo"), "reference": str(root / "sft"),
        "temperature": 1.0, "kl_budget": 1e4,
    }  # fmt: skip
    stages = {
        "win_ppo": {"command": "evaluate reward", "config": config},
        "report": {"command": "report", "config": {"inputs": ["@win_ppo"], "show": False}},
    }
    path = root / "standin.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return path


def test_a_lifecycle_is_run_and_recorded(recipe, tmp_path, capfd):
    out = tmp_path / "demo.json"
    assert demo.main(["--recipe", str(recipe), "--seeds", "1", "--result", str(out)]) == 0
    assert "NOT KEPT" not in capfd.readouterr().out
    result = read_json(out)
    (run,) = result["runs"]
    assert run["seed"] == 1
    assert set(run["stage_seconds"]) == {"win_ppo", "report"}
    assert run["wall_seconds"] > max(run["stage_seconds"].values()) > 0
    row = run["rows"]["ppo"]
    assert row["win_rate"]["value"] == 1 and row["win_rate"]["baseline"] == "sft" and row["win_rate"]["n"] == 16
    assert 0.5 < row["win_rate"]["ci_low"] < 1 and row["kl_k1"]["budget"] == 1e4
    assert {"commit", "dirty"} <= set(run["commit"])
    assert result["spread"]["ppo"]["win_rate"] == {"mean": 1, "lowest": 1, "highest": 1, "deviation": 0, "seeds": 1}
    assert result["versions"]["alignkit"] and result["hardware"]["cores"]
    assert str(tmp_path.parent) not in json.dumps(result)  # nothing of the machine's folders


def row(win=(0.6, 0.55, 0.65), kl=(3.0, 2.8, 3.2), budget=5.0):
    win_rate = dict(zip(("value", "ci_low", "ci_high"), win), baseline="sft")
    return {"win_rate": win_rate, "kl_k1": dict(zip(("value", "ci_low", "ci_high"), kl), budget=budget)}


@pytest.mark.parametrize(
    ("found", "sentences"),
    [
        (row(), []),
        (
            row(win=(0.55, 0.5, 0.6)),
            ["seed 4: the win rate of ppo against sft, 0.550 [0.500, 0.600], is not above 0.5"],
        ),
        (
            row(kl=(4.9, 4.7, 5.1)),
            ["seed 4: the KL divergence of ppo, 4.900 [4.700, 5.100], is over the budget of 5 nats"],
        ),
        (
            {},
            [
                "seed 4: the win rate of ppo against its baseline, which was not measured, is not above 0.5",
                "seed 4: the KL divergence of ppo, which was not measured, is over the budget of the recipe (there is none)",
            ],
        ),
    ],
)
def test_promises(found, sentences):
    assert demo.broken_promises({"seed": 4, "rows": {"ppo": found}}) == sentences


def test_a_broken_promise_is_said_and_is_the_code(monkeypatch, tmp_path, capsys):
    def fake(recipe, seed, folder):
        folder.mkdir(parents=True)
        (folder / "a").mkdir()
        (folder / "a" / "provenance.json").write_text('{"hardware": {}, "versions": {}}')
        rows = {"ppo": row(win=(0.5 + seed / 10, 0.45 + seed / 10, 0.55 + seed / 10))}
        return {"seed": seed, "wall_seconds": 10.0 + seed, "rows": rows}

    monkeypatch.setattr(demo, "run_seed", fake)
    assert demo.main(["--seeds", "1", "0", "--result", str(tmp_path / "r.json")]) == 1
    printed = capsys.readouterr().out
    assert printed.count("NOT KEPT") == 1 and "NOT KEPT: seed 0: the win rate of ppo against sft, 0.500" in printed
    spread = read_json(tmp_path / "r.json")["spread"]
    assert spread["wall_seconds"] == {
        "mean": 10.5, "lowest": 10, "highest": 11, "deviation": pytest.approx(0.5**0.5), "seeds": 2,
    }  # fmt: skip
    assert spread["ppo"]["win_rate"]["mean"] == pytest.approx(0.55)
