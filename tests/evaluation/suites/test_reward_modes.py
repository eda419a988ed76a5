"""`evaluate reward` on prompts with several answers, on samples of one policy, and with an ensemble."""

import json

import numpy as np
import pytest

from evaluation.preferences.best_of_n import best_of_n
from evaluation.preferences.rewardbench import best_of_credit, ties_prompt, ties_score
from evaluation.scoring import score_ids
from evaluation.suites.reward import STAGE
from launch.config import build
from launch.errors import UserError
from tests.evaluation import tiny
from tests.evaluation.rows import write_completions
from tests.evaluation.suites.conftest import read_rows, run_suite

SEEDS = {"judge": 2, "proxy": 3}


def rewards(name, prompt, texts):
    return score_ids(
        tiny.reward_model(SEEDS[name]), [tiny.tokenizer()(prompt + t)["input_ids"] + [257] for t in texts]
    ).numpy()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_candidates_by_subset_with_ties(models, tmp_path):
    rows = [
        {
            "id": f"{n}",
            "prompt": f"q{n} ",
            "chosen": ["yes" * (n % 3 + 1)],
            "rejected": ["no", "never" * (n % 2 + 1), "maybe"],
            "subset": "Math" if n % 2 else "Focus",
        }
        for n in range(14)
    ]
    for n in range(4):
        rows.append(
            {"id": f"ref:{n}", "prompt": f"r{n} ", "chosen": ["one"], "rejected": ["two", "three"], "subset": "Ties"}
        )
        rows.append(
            {
                "id": f"tied:{n}",
                "prompt": f"t{n} ",
                "chosen": ["red", "blue", "green"],
                "rejected": ["dog", "cat"],
                "subset": "Ties",
            }
        )
    result = run_suite(
        STAGE, tmp_path / "out", mode="candidates", model=models / "judge", candidates=write(tmp_path / "c.jsonl", rows)
    )
    scores = [rewards("judge", r["prompt"], r["chosen"] + r["rejected"]) for r in rows]
    credit = [best_of_credit(s, 1) for s in scores[:14]]
    assert result.metric("best_of_candidates").value == pytest.approx(np.mean(credit))
    assert result.metric("baseline_chance").value == pytest.approx(0.25)
    stats = {r["id"]: ties_prompt(s, len(r["chosen"])) for r, s in zip(rows[14:], scores[14:], strict=True)}
    ties = ties_score(
        *({k.split(":")[1]: v for k, v in stats.items() if k.startswith(kind)} for kind in ("ref", "tied"))
    )
    assert result.metric("ties_score").value == pytest.approx(ties.value, abs=1e-5)
    subsets = {s.name: s.metrics[0].value for s in result.slices}
    assert subsets == pytest.approx(
        {"Focus": np.mean(credit[::2]), "Math": np.mean(credit[1::2]), "Ties": ties.value}, abs=1e-5
    )
    assert result.metric("mean_of_subsets").value == pytest.approx(np.mean(list(subsets.values())))
    assert result.metric("ties_score").bounds == pytest.approx((-0.01, 1.01))  # it goes beyond a share
    assert result.metric("mean_of_subsets").bounds == pytest.approx((-0.01 / 3, 1 + 0.01 / 3))
    assert {s.name: s.metrics[0].bounds[1] for s in result.slices} == pytest.approx(
        {"Focus": 1, "Math": 1, "Ties": 1.01}
    )
    table = read_rows(tmp_path / "out")
    np.testing.assert_allclose(table[0]["rewards"], scores[0], atol=1e-5)
    assert [r["correct"] for r in table[:14]] == [c == 1 for c in credit]


def test_content_blind_baselines_of_candidates(models, tmp_path):
    rows = [{"prompt": f"q{n} ", "chosen": ["much longer answer"], "rejected": ["no", "x", "yz"]} for n in range(5)]
    result = run_suite(
        STAGE, tmp_path / "out", mode="candidates", model=models / "judge", candidates=write(tmp_path / "c.jsonl", rows)
    )
    assert result.metric("baseline_longest").value == 1 and result.metric("baseline_shortest").value == 0
    assert result.slices == [] and not (tmp_path / "out" / "scored").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"id": "7", "prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"},
            "is not ref:N or tied:N",
        ),
        (
            {"id": "tied:7", "prompt": "p", "chosen": ["a"], "rejected": ["c"], "subset": "Ties"},
            "tied:7 has one right answer",
        ),
        (
            {"id": "ref:7", "prompt": "p", "chosen": ["a"], "rejected": ["c"], "subset": "Ties"},
            "'ref:7' .* occurs twice",
        ),
    ],
)
def test_ties_that_cannot_be_told_apart(models, tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        run_suite(
            STAGE,
            tmp_path / "out",
            mode="candidates",
            model=models / "judge",
            candidates=write(tmp_path / "c.jsonl", [row, row]),
        )


# ---------------------------------------------------------------------------------------------- best of n


@pytest.fixture
def samples(tmp_path):
    rows = [
        {"prompt": f"prompt {n} ", "completion": chr(97 + (7 * n + k) % 26) * (1 + k)}
        for n in range(9)
        for k in range(4)
    ]
    return write_completions(tmp_path / "samples.jsonl", rows), rows


def test_best_of_n_by_a_proxy(models, samples, tmp_path):
    path, rows = samples
    result = run_suite(
        STAGE, tmp_path / "out", mode="best-of-n", completions=path, judge=models / "judge", proxy=models / "proxy"
    )
    judged, proxy = (
        np.array([rewards(name, r["prompt"], [r["completion"]])[0] for r in rows]).reshape(9, 4) for name in SEEDS
    )
    for n in (1, 2, 4):
        expected = np.mean([best_of_n(p, j, n) for p, j in zip(proxy, judged, strict=True)])
        assert result.metric(f"best_of_{n}").value == pytest.approx(expected, abs=1e-5)
        assert result.metric(f"best_of_{n}").n == 9
    assert result.metric("best_of_4").extra["proxy"] == pytest.approx(proxy.max(1).mean(), abs=1e-5)
    assert result.metric("best_of_4").extra["kl_bound"] == pytest.approx(np.log(4) - 0.75)
    assert "to one sample that these items find with a probability of 80%: best_of_2" in result.resolution[0]
    assert len(result.resolution) == 1 and len(read_rows(tmp_path / "out")) == 36


def test_a_judge_that_chooses_for_itself_is_told_of(models, samples, tmp_path):
    result = run_suite(STAGE, tmp_path / "out", mode="best-of-n", completions=samples[0], judge=models / "judge")
    values = [m.value for m in result.metrics]
    assert values == sorted(values) and "can only rise" in result.notes[0]


def test_one_sample_of_a_prompt_is_refused(models, tmp_path):
    path = write_completions(tmp_path / "one.jsonl", [{"prompt": "p", "completion": "c"}])
    with pytest.raises(UserError, match="this prompt has one sample"):
        run_suite(STAGE, tmp_path / "out", mode="best-of-n", completions=path, judge=models / "judge")


# ---------------------------------------------------------------------------------------------- pairs


def test_an_ensemble_and_rewardbenchs_sections(models, tmp_path):
    rows = [
        {
            "prompt": f"p{n} ",
            "chosen": "good" * (1 + n % 3),
            "rejected": "bad" + "!" * (n % 4),
            "source": ["donotanswer", "math-prm"][n % 2],
        }
        for n in range(24)
    ]
    result = run_suite(
        STAGE,
        tmp_path / "out",
        model=models / "judge",
        ensemble=models / "proxy",
        preferences=write(tmp_path / "p.jsonl", rows),
    )
    margins = np.array(
        [[np.subtract(*rewards(name, r["prompt"], [r["chosen"], r["rejected"]])) for r in rows] for name in SEEDS]
    )
    np.testing.assert_allclose([r["margins"] for r in read_rows(tmp_path / "out")], margins.T, atol=1e-5)
    votes = margins > 0
    assert result.metric("ensemble_unanimous").value == pytest.approx((votes[0] == votes[1]).mean())
    assert result.metric("ensemble_accuracy").extra["each"] == pytest.approx(votes.mean(1).tolist())
    assert result.metric("rewardbench/Safety").value == pytest.approx(votes[0][::2].mean())
    assert result.metric("rewardbench/Reasoning").value == pytest.approx(votes[0][1::2].mean())
    assert "rewardbench" not in [m.name for m in result.metrics]  # two sections are missing
    assert result.metric("accuracy").value == pytest.approx(votes[0].mean())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "candidates", "model": "m"}, "candidates is missing"),
        (
            {"mode": "candidates", "model": "m", "candidates": "c", "preferences": "p"},
            "preferences: belongs to modes accuracy and implicit",
        ),
        (
            {"mode": "best-of-n", "completions": "c", "judge": "j", "baseline": "b"},
            "baseline: belongs to mode win-rate",
        ),
        (
            {"mode": "best-of-n", "completions": "c", "judge": "j", "ensemble": "e"},
            "ensemble: belongs to mode accuracy",
        ),
        ({"model": "m", "preferences": "p", "proxy": "x"}, "proxy: belongs to modes win-rate and best-of-n"),
    ],
)
def test_mistakes(values, said):
    with pytest.raises(UserError, match=said):
        build(STAGE.config, {"output_dir": "o", **values}, "test")
