"""Leagues: models before a reward model, an endpoint or people, or recorded comparisons."""

import functools
import json
import os
import signal

import numpy as np
import pytest

from evaluation.report.collect import collect
from evaluation.report.leaderboard import leaderboards
from evaluation.schema import load
from evaluation.scoring import score_ids
from evaluation.suites import report
from evaluation.suites.duels import STAGE
from launch.config import build
from launch.errors import UserError
from launch.stage import run_stage
from tests.evaluation import tiny
from tests.evaluation.rows import write_completions
from tests.evaluation.suites.conftest import read_rows, run_suite
from tests.forked import ForkedJob
from tests.judge_server import JudgeServer, longer

PROMPTS = [f"prompt {n}: " for n in range(16)]
STYLES = {
    "short": lambda n: "ok" + "." * (n % 3),
    "long": lambda n: "a long answer" + "!" * (n % 2),
    "odd": lambda n: "odd" * (1 + n % 5),
}


@pytest.fixture
def files(tmp_path):
    """Completions of three models on the same prompts, by name."""
    found = {}
    for name, text in STYLES.items():
        (tmp_path / name).mkdir()
        rows = [{"prompt": p, "completion": text(n)} for n, p in enumerate(PROMPTS)]
        found[name] = write_completions(tmp_path / name / "completions.jsonl", rows)
    return found


def models_of(folder):
    return {r.subject.name: r for r in map(load, sorted((folder / "models").iterdir()))}


def test_a_league_before_a_reward_model(models, files, tmp_path):
    result = run_suite(STAGE, tmp_path / "out", completions=",".join(map(str, files.values())), judge=models / "judge")
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 3 * 16 and result.subject.kind == "judge"
    ids = [
        tiny.tokenizer()(r["prompt"] + r[side])["input_ids"] + [257]
        for side in ("completion", "opponent_completion")
        for r in rows
    ]
    rewards = score_ids(tiny.reward_model(2), ids).numpy()
    wins = np.sign(rewards[:48] - rewards[48:]) / 2 + 0.5
    np.testing.assert_array_equal([r["outcome"] for r in rows], wins)
    np.testing.assert_allclose([r["verdict"]["rewards"] for r in rows], rewards.reshape(2, -1).T, atol=1e-5)
    singles = models_of(tmp_path / "out")
    assert set(singles) == set(files) and all(r.suite == "duels" for r in singles.values())
    elos = {name: r.metric("elo").value for name, r in singles.items()}
    assert sum(elos.values()) == pytest.approx(3000)
    assert elos == pytest.approx({name: result.metric(f"elo/{name}").value for name in files})
    share = np.mean(
        [
            o if r["model"] == "long" else 1 - o
            for r, o in zip(rows, wins, strict=True)
            if "long" in (r["model"], r["opponent"])
        ]
    )
    assert singles["long"].metric("league_win_rate").value == pytest.approx(share)
    assert [
        m.name for m in result.metrics if m.name in ("consistency", "position_bias")
    ] == []  # it reads answers apart
    assert not (tmp_path / "out" / "scored").exists()


def test_a_report_puts_the_models_of_a_league_into_one_table(models, files, tmp_path):
    run_suite(STAGE, tmp_path / "out", completions=",".join(map(str, files.values())), judge=models / "judge")
    boards = {b.title: b for b in leaderboards([found.result for found in collect([tmp_path / "out"]).results])}
    language = boards["Language models"] if "Language models" in boards else next(iter(boards.values()))
    assert {row.name for row in language.rows} == set(files)
    elo = [c for c in language.columns if c.name == "elo"]
    assert len(elo) == 1 and all(elo[0].key in row.cells for row in language.rows)
    assert "Judges" in boards
    run_stage(report.STAGE, build(report.STAGE.config, report_of(tmp_path), "test"))
    assert all(name in (tmp_path / "report" / "index.html").read_text() for name in files)
    assert "elo/long" in "".join(path.read_text() for path in (tmp_path / "report" / "exports").rglob("*.md"))


def report_of(folder):
    return {"inputs": [str(folder / "out")], "output_dir": str(folder / "report"), "show": False}


def endpoint(server, **more):
    return {"url": server.url, "model": "tiny", **more}


def test_an_endpoint_is_asked_in_both_orders(files, tmp_path):
    biased = lambda prompt, first, second: "[[A]]" if "3" in prompt else longer(prompt, first, second)  # noqa: E731
    with JudgeServer(reply=biased) as server:
        out = tmp_path / "out"
        result = run_suite(STAGE, out, completions=f"{files['short']},{files['long']}", endpoint=endpoint(server))
        assert server.asked == 32
    rows = read_rows(out)
    swayed = ["3" in r["prompt"] for r in rows]
    assert [r["outcome"] for r in rows] == [0.5 if s else 0.0 for s in swayed]
    assert result.metric("consistency").value == pytest.approx(1 - sum(swayed) / 16)
    assert result.metric("position_bias").value == pytest.approx(sum(swayed) / 32)
    assert result.metric("missing_verdicts").value == 0
    assert rows[0]["verdict"]["vote"] == 0.0 and rows[0]["swapped"]["vote"] == 1.0
    assert models_of(out)["short"].slices[0].metrics[0].value == pytest.approx(sum(swayed) / 32)
    assert result.protocol.judge.path == "tiny"
    assert "Elo points; models that share a rank may differ as much" in result.resolution[0]
    assert "consistency" in result.resolution[1] and models_of(out)["long"].resolution == result.resolution[:1]


def test_a_judge_that_always_names_the_first_is_told_of_beside_every_number(files, tmp_path):
    with JudgeServer(reply=lambda *_: "[[A]]") as server:
        result = run_suite(
            STAGE, tmp_path / "out", completions=f"{files['short']},{files['long']}", endpoint=endpoint(server)
        )
    (note,) = result.notes
    assert "position bias +0.50" in note and all(r.notes == [note] for r in models_of(tmp_path / "out").values())


def test_verdicts_that_cannot_be_read_are_counted_and_left_out(files, tmp_path):
    with JudgeServer(reply=lambda p, a, b: "who knows" if p == PROMPTS[0] else longer(p, a, b)) as server:
        result = run_suite(
            STAGE, tmp_path / "out", completions=f"{files['short']},{files['long']}", endpoint=endpoint(server)
        )
    assert result.metric("missing_verdicts").value == pytest.approx(2 / 32)
    assert read_rows(tmp_path / "out")[0]["outcome"] is None
    assert models_of(tmp_path / "out")["long"].metric("elo").n == 15
    with (
        JudgeServer(reply=lambda *_: "hm") as server,
        pytest.raises(UserError, match=r"no verdict on 16 of 16 duels \(the first: .*"),
    ):
        run_suite(STAGE, tmp_path / "none", completions=f"{files['short']},{files['long']}", endpoint=endpoint(server))


def test_too_few_verdicts_are_told_before_what_they_are_too_few_for(files, tmp_path):
    """Of 16 prompts that were judged, "judge at least 12 prompts" alone would be the wrong advice."""
    three = ",".join(map(str, files.values()))
    said = (
        r"tiny gave no verdict on 45 of 48 duels \(the first: the last line is no verdict, its reply ends 'hm \\x07'\)"
    )
    with (
        JudgeServer(reply=lambda p, a, b: longer(p, a, b) if p == PROMPTS[3] else "hm \x07") as server,
        pytest.raises(UserError, match=said + "; Bradley-Terry: 1 clusters"),
    ):
        run_suite(STAGE, tmp_path / "few", completions=three, endpoint=endpoint(server))
    with (
        JudgeServer(reply=lambda p, *shown: "hm" if any("odd" in s for s in shown) else longer(p, *shown)) as server,
        pytest.raises(UserError, match=r"no verdict on 32 of 48 duels .*, so nothing is known of odd"),
    ):
        run_suite(STAGE, tmp_path / "deaf", completions=three, endpoint=endpoint(server))


def test_a_league_of_too_few_prompts_asks_no_judge(files, tmp_path):
    with JudgeServer() as server, pytest.raises(UserError, match="judge at least 12 prompts"):
        completions = ",".join(map(str, files.values()))
        run_suite(STAGE, tmp_path / "out", completions=completions, endpoint=endpoint(server), max_prompts=11)
    assert server.asked == 0


def test_all_against_one(models, files, tmp_path):
    both = dict(completions=",".join(map(str, files.values())), judge=models / "judge")
    run_suite(STAGE, tmp_path / "out", **both, against="odd", max_prompts=13)
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 26 and all("odd" in (r["model"], r["opponent"]) for r in rows)
    assert len(models_of(tmp_path / "out")["odd"].slices) == 2
    with pytest.raises(UserError, match="no model oddd; did you mean"):
        run_suite(STAGE, tmp_path / "no", **both, against="oddd")
    with pytest.raises(UserError, match="two models are called same"):
        run_suite(STAGE, tmp_path / "no", **both, names="same,same,other")


def test_people_decide_what_they_saw(files, tmp_path):
    rows = [
        {"prompt": p, "chosen": STYLES["long"](n), "rejected": STYLES["short"](n)} for n, p in enumerate(PROMPTS[:12])
    ]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "out"
    result = run_suite(
        STAGE, out, completions=f"{files['short']},{files['long']}", annotations=tmp_path / "people.jsonl"
    )
    assert result.metric("missing_verdicts").value == pytest.approx(4 / 16)
    assert models_of(out)["long"].metric("league_win_rate").value == 1
    assert models_of(out)["long"].metric("elo").n == 12


def test_recorded_comparisons(tmp_path):
    rows = [
        {"model_a": a, "model_b": b, "winner": w, "prompt": f"{n}"}
        for n, (a, b, w) in enumerate([("x", "y", "model_a"), ("y", "z", "model_a"), ("x", "z", "tie")] * 6)
    ]
    (tmp_path / "games.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = run_suite(STAGE, tmp_path / "out", comparisons=tmp_path / "games.jsonl")
    assert [m.name for m in result.metrics] == ["elo/x", "elo/y", "elo/z"]
    assert list(models_of(tmp_path / "out")) == ["x", "y", "z"]  # the strongest first
    lonely = [*rows, {"model_a": "v", "model_b": "w", "winner": "tie", "prompt": "q"}]
    (tmp_path / "parts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lonely))
    with pytest.raises(UserError, match=r"2 parts that never met, \[x, y, z\]\[v, w\]"):
        run_suite(STAGE, tmp_path / "parts", comparisons=tmp_path / "parts.jsonl")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "give --completions A,B,... with a judge, or --comparisons FILE"),
        ({"completions": "a"}, "judge is missing"),
        ({"completions": "a", "judge": "j"}, "at least two models"),
        ({"completions": "a,b", "judge": "j", "annotations": "p"}, "there is another judge"),
        ({"completions": "a,b", "endpoint": {"url": "http://h/v1"}}, "endpoint.model is missing"),
        ({"completions": "a,b", "endpoint": {"url": "ftp://h", "model": "m"}}, "is no address"),
        ({"completions": "a,b", "endpoint": {"url": "http://h/v1?api_key=s3cret", "model": "m"}}, "holds a secret"),
        (
            {"completions": "a,b", "endpoint": {"url": "http://h", "model": "m", "token_env": "sk-abc"}},
            "no name of an environment variable",
        ),
        ({"completions": "a,b", "judge": "j", "names": "x"}, "1 names for 2 models"),
        ({"comparisons": "c", "judge": "j"}, "nothing is left to judge"),
        ({"comparisons": "c", "against": "x"}, "belongs to completions"),
    ],
)
def test_mistakes(values, said):
    with pytest.raises(UserError, match=said) as raised:
        build(STAGE.config, {"output_dir": "out", **values}, "test")
    assert "s3cret" not in str(raised.value) and "sk-abc" not in str(raised.value)


def test_a_key_that_is_not_set(files, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with JudgeServer() as server, pytest.raises(UserError, match="JUDGE_KEY is not set"):
        run_suite(
            STAGE,
            tmp_path / "out",
            completions=f"{files['short']},{files['long']}",
            endpoint=endpoint(server, token_env="JUDGE_KEY"),
        )
    assert server.asked == 0


def test_the_key_is_in_none_of_the_files(files, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-hidden-123")
    with JudgeServer(token="sk-hidden-123") as server:
        run_suite(
            STAGE,
            tmp_path / "out",
            completions=f"{files['short']},{files['long']}",
            endpoint=endpoint(server, token_env="JUDGE_KEY"),
        )
    kept = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(kept) > 5 and not any(b"sk-hidden-123" in path.read_bytes() for path in kept)


# ---------------------------------------------------------------------------------------------- resuming


def test_an_endpoint_that_goes_away_costs_no_verdict_that_it_gave(files, tmp_path):
    pair = f"{files['short']},{files['long']}"
    gone = (503, b"gone", 0)
    with JudgeServer(trouble=lambda number: gone if number >= 21 else None) as server:
        settings = endpoint(server, concurrency=2, attempts=1)  # units of 2 x 4
        with pytest.raises(UserError, match="what it answered before is kept"):
            run_suite(STAGE, tmp_path / "out", completions=pair, endpoint=settings)
    (log,) = (tmp_path / "out" / "scored").iterdir()
    written = len(log.read_text().splitlines())
    assert written in (20, 21)  # one may have been under way
    with JudgeServer() as server:
        run_suite(STAGE, tmp_path / "out", completions=pair, endpoint=endpoint(server))
        assert server.asked == 32 - written


def die_after(path, verdicts: int):
    """In a rank: end by SIGKILL when so many verdicts are written down."""
    from evaluation import sample_log

    append, written = sample_log._AppendedFile.append, [0]

    def fatal(self, key, row):
        kept = append(self, key, row)
        written[0] += 1
        if written[0] == verdicts:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        return kept

    sample_log._AppendedFile.append = fatal


def test_a_kill_costs_no_verdict_that_was_written(files, tmp_path):
    with JudgeServer() as server:
        settings = {
            "completions": f"{files['short']},{files['long']}",
            "endpoint.url": server.url,
            "endpoint.model": "tiny",
            "endpoint.concurrency": 2,
        }

        def run(out, hook=None):
            words = [w for k, v in (settings | {"output_dir": out}).items() for w in (f"--{k}", v)]
            job = ForkedJob(words, tmp_path / "logs", hook=hook, module="evaluation.suites.duels")
            return job.wait(200), job.say()

        codes, said = run(tmp_path / "killed", functools.partial(die_after, verdicts=12))
        assert codes == [-signal.SIGKILL], said
        asked = server.asked
        codes, said = run(tmp_path / "killed")
        assert codes == [0] and "1 of 4 units of verdicts were scored before" in said, said
        assert server.asked == asked + 32 - 12
        codes, said = run(tmp_path / "whole")
        assert codes == [0], said
    assert read_rows(tmp_path / "killed") == read_rows(tmp_path / "whole")


@pytest.mark.distributed
def test_two_processes_share_the_verdicts(models, files, tmp_path):
    """Each is asked for once, over both processes, and the result is that of one process."""
    with JudgeServer() as server:
        judges = {
            "endpoint": {"endpoint.url": server.url, "endpoint.model": "tiny", "endpoint.concurrency": 1},
            "model": {"judge": models / "judge"},
        }
        for name, judge in judges.items():
            for world in (1, 2):
                out = tmp_path / f"{name}{world}"
                settings = {"completions": f"{files['short']},{files['long']}", "output_dir": out, **judge}
                words = [w for k, v in settings.items() for w in (f"--{k}", v)]
                job = ForkedJob(words, tmp_path / "logs", world, module="evaluation.suites.duels")
                assert job.wait(200) == [0] * world, job.say()
            assert read_rows(tmp_path / f"{name}1") == read_rows(tmp_path / f"{name}2")
            one, two = (load(tmp_path / f"{name}{world}") for world in (1, 2))
            assert one.metrics == two.metrics and len(models_of(tmp_path / f"{name}2")) == 2
        assert server.asked == 2 * 32
