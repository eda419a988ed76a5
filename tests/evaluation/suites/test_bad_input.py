"""Rubbish for `alignkit evaluate text|reward|duels|judge`: one sentence and code 2, or a result that says what it lacks."""

import importlib
import json

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from launch.entry import guarded, run_stage_command
from tests.evaluation import tiny
from tests.evaluation.rows import write_completions

PAIR = {"prompt": "p: ", "chosen": "good", "rejected": "bad answer"}
LONG = {"prompt": "p: ", "chosen": "x" * 200, "rejected": "y"}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def cut(path):
    """The file without the second half of its last line."""
    content = path.read_text()
    path.with_name(f"cut_{path.name}").write_text(content[: -len(content.splitlines()[-1]) // 2])


@pytest.fixture(scope="module")
def place(models, tmp_path_factory):
    """A folder with good and bad inputs; names in the cases below are relative to it."""
    root = tmp_path_factory.mktemp("rubbish")
    for name in ("policy", "reference", "judge"):
        (root / name).symlink_to(models / name)
    for name, source, kind in (
        ("padless", "policy", AutoModelForCausalLM),
        ("padless_judge", "judge", AutoModelForSequenceClassification),
    ):
        model, tokenizer = kind.from_pretrained(models / source), AutoTokenizer.from_pretrained(models / source)
        model.config.pad_token_id = tokenizer.pad_token = None
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    endless = AutoTokenizer.from_pretrained(models / "policy")
    endless.eos_token = None
    for name, model in (("endless", tiny.language_model(0)), ("endless_judge", tiny.reward_model(2))):
        model.save_pretrained(root / name)
        endless.save_pretrained(root / name)
    texts = [{"text": f"held-out text {n}"} for n in range(3)]
    pairs = [{**PAIR, "prompt": f"p{n}: "} for n in range(3)]
    candidates = [{"prompt": f"p{n}: ", "chosen": ["yes"], "rejected": ["no", "perhaps"]} for n in range(3)]
    games = [{"model_a": "a", "model_b": "b", "winner": w} for w in ("model_a", "model_b", "tie")]
    tables = {"texts": texts, "pairs": pairs, "candidates": candidates, "games": games}
    for name, rows in tables.items():
        lines(root / f"{name}.jsonl", rows)
        lines(root / f"one_{name}.jsonl", rows[:1])
        cut(root / f"{name}.jsonl")
    rows = [{"prompt": f"p{n}: ", "completion": f"text {n}"} for n in range(3)]
    for name, chosen in (("ours", rows), ("theirs", rows), ("one_ours", rows[:1]), ("one_theirs", rows[:1])):
        write_completions(root / f"{name}.jsonl", [{**r, "completion": f"{r['completion']} {name}"} for r in chosen])
    write_completions(root / "samples.jsonl", [r for r in rows for _ in range(2)])
    write_completions(root / "long_ours.jsonl", [{**r, "completion": "x" * 200} for r in rows])
    half = (root / "ours.jsonl").read_text().replace("text 0", "half \\ud83d of a character")
    (root / "half.jsonl").write_text(half)
    cut(root / "ours.jsonl")
    lines(root / "long_texts.jsonl", [{"text": "x" * 200}, {"text": "short"}])
    lines(root / "long_pairs.jsonl", [PAIR, LONG])
    lines(root / "long_candidates.jsonl", [{"prompt": "p", "chosen": ["x" * 200], "rejected": ["y"]}])
    lines(root / "half_texts.jsonl", [{"text": "half \ud83d of a character"}])
    lines(root / "half_pairs.jsonl", [{**PAIR, "chosen": "half \ud83d of a character"}])
    lines(root / "half_candidates.jsonl", [{"prompt": "p", "chosen": ["half \ud83d"], "rejected": ["y"]}])
    lines(root / "half_subset.jsonl", [{"prompt": "p", "chosen": ["x"], "rejected": ["y"], "subset": "\ud83d"}])
    lines(root / "half_games.jsonl", [{"model_a": "half \ud83d", "model_b": "b", "winner": "tie"}])
    (root / "empty.jsonl").write_text("")
    return root


TEXT = "text --model policy"
REWARD = "reward --model judge --preferences"
IMPLICIT = "reward --mode implicit --policy policy --reference reference --preferences"
CANDIDATES = "reward --mode candidates --model judge --candidates"
WIN = "reward --mode win-rate --judge judge --completions"
BEST = "reward --mode best-of-n --judge judge --completions"
DUELS = "duels --judge judge --completions"
JUDGE = "judge --judge judge --preferences"
REFUSED = {
    f"{TEXT} --documents empty.jsonl": ["empty.jsonl", "is empty"],
    f"{TEXT} --documents cut_texts.jsonl": ["cut_texts.jsonl: line 3", "cut"],
    f"{TEXT} --documents half_texts.jsonl": ["half_texts.jsonl: line 1", "half a character"],
    f"{TEXT} --documents texts.jsonl --context 65": ["context: 65 is more than the model's 64"],
    f"{TEXT} --completions empty.jsonl": ["empty.jsonl", "is empty"],
    f"{TEXT} --completions cut_ours.jsonl": ["cut_ours.jsonl: line 3", "cut"],
    f"{TEXT} --completions half.jsonl": ["half.jsonl: line 1", "half a character"],
    f"{REWARD} empty.jsonl": ["empty.jsonl", "is empty"],
    f"{REWARD} cut_pairs.jsonl": ["cut_pairs.jsonl: line 3", "cut"],
    f"{REWARD} half_pairs.jsonl": ["half_pairs.jsonl: line 1", "half a character"],
    f"{REWARD} long_pairs.jsonl": ["row 2 has", "context of 64"],
    f"{IMPLICIT} empty.jsonl": ["empty.jsonl", "is empty"],
    f"{IMPLICIT} cut_pairs.jsonl": ["cut_pairs.jsonl: line 3", "cut"],
    f"{IMPLICIT} long_pairs.jsonl": ["row 2 has", "context of 64"],
    "reward --mode implicit --policy endless --reference endless --preferences pairs.jsonl": [
        "endless",
        "no end token",
    ],
    f"{CANDIDATES} empty.jsonl": ["empty.jsonl", "is empty"],
    f"{CANDIDATES} cut_candidates.jsonl": ["cut_candidates.jsonl: line 3", "cut"],
    f"{CANDIDATES} half_candidates.jsonl": ["half_candidates.jsonl: line 1", "half a character"],
    f"{CANDIDATES} half_subset.jsonl": ["half_subset.jsonl: line 1", "half a character"],
    f"{CANDIDATES} long_candidates.jsonl": ["row 1 has", "context of 64"],
    f"{WIN} ours.jsonl --baseline empty.jsonl": ["empty.jsonl", "is empty"],
    f"{WIN} cut_ours.jsonl --baseline theirs.jsonl": ["cut_ours.jsonl: line 3", "cut"],
    f"{WIN} long_ours.jsonl --baseline theirs.jsonl": ["row 1 has", "context of 64"],
    f"{WIN} ours.jsonl --baseline one_theirs.jsonl": ["ours.jsonl: line 2", "the same prompts"],
    f"{BEST} empty.jsonl": ["empty.jsonl", "is empty"],
    f"{BEST} ours.jsonl": ["ours.jsonl: line 1", "one sample"],
    f"{DUELS} ours.jsonl,empty.jsonl": ["empty.jsonl", "is empty"],
    f"{DUELS} ours.jsonl,cut_ours.jsonl": ["cut_ours.jsonl: line 3", "cut"],
    f"{DUELS} ours.jsonl,one_theirs.jsonl": ["ours.jsonl: line 2", "the same prompts"],
    f"{DUELS} theirs.jsonl,long_ours.jsonl": ["pair 1 has", "context of 64"],
    f"{DUELS} theirs.jsonl,half.jsonl": ["half.jsonl: line 1", "half a character"],
    "duels --comparisons empty.jsonl": ["empty.jsonl", "is empty"],
    "duels --comparisons cut_games.jsonl": ["cut_games.jsonl: line 3", "cut"],
    "duels --comparisons half_games.jsonl": ["half_games.jsonl: line 1", "half a character"],
    f"{JUDGE} empty.jsonl": ["empty.jsonl", "is empty"],
    f"{JUDGE} cut_pairs.jsonl": ["cut_pairs.jsonl: line 3", "cut"],
    f"{JUDGE} long_pairs.jsonl": ["pair 2 has", "context of 64"],
    "judge --judge endless_judge --preferences pairs.jsonl": ["endless_judge", "no end token"],
    "reward --model endless_judge --preferences pairs.jsonl": ["endless_judge", "no end token"],
}
ACCEPTED = [
    f"{TEXT} --documents one_texts.jsonl",
    f"{TEXT} --documents long_texts.jsonl",
    "text --model padless --documents texts.jsonl",
    f"{TEXT} --completions one_ours.jsonl",
    f"{REWARD} one_pairs.jsonl",
    "reward --model padless_judge --preferences pairs.jsonl",
    f"{IMPLICIT} one_pairs.jsonl",
    "reward --mode implicit --policy padless --reference padless --preferences pairs.jsonl",
    f"{CANDIDATES} one_candidates.jsonl",
    f"{WIN} one_ours.jsonl --baseline one_theirs.jsonl",
    f"{BEST} samples.jsonl",
    f"{DUELS} one_ours.jsonl,one_theirs.jsonl",
    "duels --judge padless_judge --completions ours.jsonl,theirs.jsonl",
    "duels --comparisons one_games.jsonl",
    f"{JUDGE} one_pairs.jsonl",
    "judge --judge padless_judge --preferences pairs.jsonl",
]


def command(place, monkeypatch, line, out):
    """Exit code of `alignkit evaluate LINE` in the folder of the inputs."""
    suite, *words = line.split()
    monkeypatch.chdir(place)
    stage = importlib.import_module(f"evaluation.suites.{suite}").STAGE
    return guarded(lambda: run_stage_command(stage, [*words, "--output_dir", str(out)]))


@pytest.mark.parametrize("line", REFUSED)
def test_one_sentence_and_code_2(place, tmp_path, monkeypatch, capsys, line):
    assert command(place, monkeypatch, line, tmp_path / "out") == 2
    said = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert len(said) == 1 and said[0].startswith("alignkit: error: "), said
    assert all(part in said[0] for part in REFUSED[line]), said[0]
    assert list((tmp_path / "out").rglob("results.json")) == []


@pytest.mark.parametrize("line", ACCEPTED)
def test_little_is_enough(place, tmp_path, monkeypatch, capsys, line):
    """One sample has no interval, and says so; texts are windowed, and a missing pad token is no matter."""
    assert command(place, monkeypatch, line, tmp_path / "out") == 0, capsys.readouterr().err
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("results.json")]
    assert results
    for entry in (entry for result in results for entry in result["metrics"]):
        if "one_" in line and entry["n"] == 1 and entry["value"] is not None:
            assert entry["ci_low"] is None or entry["ci_high"] - entry["ci_low"] > 0.7, entry
