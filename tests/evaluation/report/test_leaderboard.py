"""Leaderboards: golden rows, rank groups, separate columns for separate protocols, and the warnings."""

import dataclasses
import hashlib

import pytest

from evaluation.report.export import to_csv
from evaluation.report.leaderboard import Leaderboard, distinct_names, leaderboards
from evaluation.report.names import HEADLINE, primary_rank, short_source, title_of
from evaluation.report.tables import comparison_rows
from evaluation.report.views import board_view, sentence
from evaluation.schema import Comparison, EvaluationResult, Judge, Metric, Protocol, Subject

PROTOCOL = Protocol(dataset="prompts", dataset_sha256="a" * 64, n_items=100)


def number(name, value, low=None, high=None, n=100, better=True, **more):
    method = "wilson" if low is not None else ""
    return Metric(name, value, n, low, high, ci_method=method, higher_is_better=better, **more)


def result(name, *metrics, kind="language model", protocol=PROTOCOL, suite="win-rate", sha="", created="2026-01-01"):
    return EvaluationResult(suite, Subject(name, kind, sha256=sha), protocol, list(metrics), created=created)


def ranks(board, name):
    column = next(c for c in board.columns if c.name == name)
    return {
        row.name: (row.cells[column.key].rank, row.cells[column.key].tied)
        for row in board.rows
        if column.key in row.cells
    }


def test_golden_rows():
    board = Leaderboard(
        [
            result("dpo", number("win_rate", 0.55, 0.50, 0.60, unit="share", baseline="sft")),
            result("ppo", number("win_rate", 0.70, 0.65, 0.75, unit="share", baseline="sft")),
            result("kto", number("win_rate", 0.58, 0.53, 0.63, unit="share", baseline="sft")),
            result("sft", number("bits_per_byte", 2.5, 2.4, 2.6, better=False), suite="text"),
        ]
    )
    assert [row.name for row in board.rows] == ["ppo", "kto", "dpo", "sft"]
    assert ranks(board, "win_rate") == {"ppo": (1, False), "kto": (2, True), "dpo": (2, True)}
    assert [c.name for c in board.columns] == ["win_rate", "bits_per_byte"]
    assert board.primary.name == "win_rate"
    view = board_view(board, dict.fromkeys(("ppo", "kto", "dpo", "sft"), 0))
    assert [(c.value, c.interval, c.rank, c.note) for c in view.table.rows[0].cells] == [
        ("70.0", "[65.0, 75.0]", "1", ""), ("", "", "", ""),
    ]  # fmt: skip
    assert view.table.rows[3].cells[0].note == "baseline"
    assert sentence(board) == "ppo leads on win rate against sft: 70.0 % [65.0, 75.0]."


def test_overlap_is_a_tie_and_not_a_rank():
    board = Leaderboard(
        [result("a", number("accuracy", 0.7, 0.6, 0.8)), result("b", number("accuracy", 0.75, 0.66, 0.84))]
    )
    assert ranks(board, "accuracy") == {"a": (1, True), "b": (1, True)}
    assert sentence(board).startswith("b and a are tied on accuracy, since their intervals overlap: b 0.750")


def test_lower_is_better_and_no_direction_is_not_ranked():
    board = Leaderboard(
        [
            result(
                "a", number("perplexity", 30.0, 29, 31, better=False), number("mean_length", 9.0, 8, 10, better=None)
            ),
            result(
                "b", number("perplexity", 20.0, 19, 21, better=False), number("mean_length", 5.0, 4, 6, better=None)
            ),
        ]
    )
    assert ranks(board, "perplexity") == {"b": (1, False), "a": (2, False)}
    assert ranks(board, "mean_length") == {"b": (None, False), "a": (None, False)}


def test_without_an_interval_there_is_no_rank_but_a_warning():
    board = Leaderboard(
        [
            result("a", number("accuracy", 0.9)),
            result("b", number("accuracy", 0.5, 0.4, 0.6)),
            result("c", number("accuracy", 0.8, 0.7, 0.85)),
        ]
    )
    assert ranks(board, "accuracy") == {"c": (1, False), "b": (2, False), "a": (None, False)}
    assert board.warnings == ["Without an interval, and so not ranked: accuracy."]


def test_two_protocols_are_two_columns():
    other = dataclasses.replace(PROTOCOL, dataset="dialogues", dataset_sha256="b" * 64)
    board = Leaderboard(
        [
            result("a", number("accuracy", 0.9, 0.8, 0.95)),
            result("b", number("accuracy", 0.5, 0.4, 0.6), protocol=other),
        ]
    )
    assert sorted(c.full_title for c in board.columns) == ["Accuracy (dialogues)", "Accuracy (prompts)"]
    assert all(cell.rank is None for row in board.rows for cell in row.cells.values())
    assert [c.dataset for c in board.headline] == [c.dataset for c in board.columns]
    assert sentence(board).endswith(". b was measured under another protocol and so not compared with that.")
    assert board.warnings == [
        "Measured under several protocols, so in separate columns and not compared: accuracy (2, which differ in dataset_sha256)."
    ]


def test_another_folder_is_no_other_protocol_and_another_split_is():
    judged = dataclasses.replace(PROTOCOL, judge=Judge("runs/1/gold", "b" * 64))
    moved = dataclasses.replace(judged, dataset="elsewhere/prompts", judge=Judge("runs/2/gold", "b" * 64))
    split = dataclasses.replace(judged, dataset="prompts::eval")
    unknown = [dataclasses.replace(judged, dataset=name, dataset_sha256="") for name in ("one", "two")]
    results = [
        result(name, number("accuracy", 0.5, 0.4, 0.6), protocol=protocol)
        for name, protocol in zip("abcde", (judged, moved, split, *unknown))
    ]
    board = Leaderboard(results)
    together = [{row.name for row in board.rows if column.key in row.cells} for column in board.columns]
    assert together == [{"a", "b"}, {"c"}, {"d"}, {"e"}]
    assert [c.dataset for c in board.columns][:2] == ["prompts and 1 more with the same content", "prompts::eval"]
    sources = [line.split(",")[15] for line in to_csv([board]).splitlines()]
    assert sources == ["dataset", "prompts", "elsewhere/prompts", "prompts::eval", "one", "two"]  # each its own


def test_columns_of_one_title_and_source_say_what_else_parts_them():
    protocols = [dataclasses.replace(PROTOCOL, decoding={"temperature": t}) for t in (0.7, 1.3)]
    others = dataclasses.replace(protocols[0], dataset_sha256="b" * 64)
    results = [
        result(name, number("accuracy", 0.5, 0.4, 0.6), protocol=protocol)
        for name, protocol in zip("abc", (*protocols, others))
    ]
    short = {p.dataset_sha256: hashlib.sha256(p.dataset_sha256.encode()).hexdigest()[:6] for p in (PROTOCOL, others)}
    first, second = short.values()
    assert sorted(c.full_title for c in Leaderboard(results).columns) == sorted(
        f"Accuracy (prompts, dataset_sha256 {sha}, temperature {t})"
        for sha, t in ((first, 0.7), (first, 1.3), (second, 0.7))
    )
    assert [c.full_title for c in Leaderboard(results[:1]).columns] == ["Accuracy"]
    suites = [result(name, number("accuracy", 0.5, 0.4, 0.6), suite=name) for name in ("text", "reward")]
    assert {c.full_title for c in Leaderboard(suites).columns} == {
        "Accuracy (prompts, text)",
        "Accuracy (prompts, reward)",
    }


def test_one_name_for_different_contents_of_one_family_is_two_rows():
    """A model, and completions of nobody knows whom, under one name: never one row, unless they are the same."""
    model = result("sft", number("bits_per_byte", 2.0, 1.9, 2.1), kind="language model", sha="a" * 64, suite="text")
    found = result("sft", number("degenerate_rate", 0.1, 0.0, 0.2), kind="completions", sha="b" * 64, suite="safety")
    assert {row.name for row in Leaderboard([model, found]).rows} == {"sft (aaaaaa)", "sft (bbbbbb)"}
    same = dataclasses.replace(found, subject=dataclasses.replace(found.subject, sha256="a" * 64))
    assert {row.name for row in Leaderboard([model, same]).rows} == {"sft"}
    reward = dataclasses.replace(found, subject=dataclasses.replace(found.subject, kind="reward model"))
    assert {r.subject.name for r in distinct_names([model, reward])} == {"sft"}  # another table


def test_a_policys_own_seed_and_completions_do_not_part_columns():
    own = [(1, "a"), (2, "b")]
    protocols = [dataclasses.replace(PROTOCOL, seeds=[s], settings={"completions_sha256": x}) for s, x in own]
    results = [result(x, number("win_rate", 0.5, 0.4, 0.6), protocol=p) for x, p in zip("ab", protocols)]
    assert len(Leaderboard(results).columns) == 1


def test_measured_twice_the_newer_counts():
    results = [
        result("a", number("accuracy", value, value - 0.1, value + 0.1), created=created)
        for value, created in ((0.6, "2026-01-02"), (0.5, "2026-01-01"))
    ]
    board = Leaderboard(results)
    assert next(iter(board.rows[0].cells.values())).metric.value == 0.6
    assert "measured twice under one protocol; the newer counts (2026-01-02)" in board.warnings[0]
    assert Leaderboard([results[0], results[0]]).warnings == []


def test_one_name_for_two_contents_makes_two_rows():
    board = Leaderboard(
        [result("a", number("accuracy", v, v - 0.1, v + 0.1), sha=s * 64) for v, s in ((0.6, "a"), (0.5, "b"))]
    )
    assert [row.name for row in board.rows] == ["a (aaaaaa)", "a (bbbbbb)"]


def test_yardsticks_are_shown_last_and_not_ranked():
    board = Leaderboard(
        [
            result("real", number("fd_digits@9", 1.0, 0.9, 1.1, better=False), kind="images"),
            result("vae", number("fd_digits@9", 9.0, 8, 10, better=False), kind="image generator"),
            result("gan", number("fd_digits@9", 5.0, 4, 6, better=False), kind="image generator"),
        ]
    )
    assert [row.name for row in board.rows] == ["gan", "vae", "real"]
    assert ranks(board, "fd_digits@9") == {"gan": (1, False), "vae": (2, False), "real": (None, False)}


def test_another_n_is_another_column():
    results = [
        result(x, number(f"fid@{n}", 9.0, 8, 10, better=False), kind="image generator")
        for x, n in (("a", 10), ("b", 20))
    ]
    assert len(Leaderboard(results).columns) == 2


def test_a_win_by_length_is_called_one():
    fair = number("win_rate_length_controlled", 0.51, 0.45, 0.57, baseline="sft")
    board = Leaderboard([result("ppo", number("win_rate", 0.7, 0.65, 0.75, baseline="sft"), fair)])
    assert any("ppo wins against sft" in w and "a win by length" in w for w in board.warnings)
    honest = number("win_rate_length_controlled", 0.65, 0.6, 0.7, baseline="sft")
    assert Leaderboard([result("ppo", number("win_rate", 0.7, 0.65, 0.75, baseline="sft"), honest)]).warnings == []


def test_small_samples_are_named():
    board = Leaderboard([result("a", number("accuracy", 0.6, 0.3, 0.9, n=8))])
    assert board.warnings == ["Few items, so wide intervals: accuracy (n = 8)."]


def test_of_two_suites_the_one_with_more_rows_makes_the_headline():
    length = number("mean_length", 9.0, 8, 10, better=None)
    board = Leaderboard([result("a", length), result("a", length, suite="text"), result("b", length, suite="text")])
    assert [c.suite for c in board.headline] == ["text"] and len(board.columns) == 2


def test_families():
    results = [
        result("a", number("auc", 0.6, 0.5, 0.7), kind=kind) for kind in ("reward model", "images", "completions")
    ]
    assert [board.title for board in leaderboards(results)] == ["Language models", "Reward models", "Image generators"]


def test_an_undefined_number_keeps_its_reason():
    undefined = Metric("accuracy", None, 0, higher_is_better=True, note="all pairs are ties")
    board = Leaderboard([result("a", undefined), result("b", number("accuracy", 0.6, 0.5, 0.7))])
    view = board_view(board, {"a": 0, "b": 1})
    assert [row.name for row in board.rows] == ["b", "a"] and view.table.rows[1].cells[0].note == "all pairs are ties"


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("fd_digits@898", "Fréchet distance"),
        ("fid@50000", "FID"),
        ("is_digits@10", "Inception Score"),
        ("my_metric", "My metric"),
    ],
)
def test_titles(name, title):
    assert title_of(name) == title


def test_sources_are_short_in_captions():
    assert short_source("/home/x/runs/preferences_b/pairs.jsonl") == "preferences_b/pairs.jsonl"
    assert short_source("embedded:docstrings::train/b") == "embedded:docstrings::train/b"
    assert short_source("prompts.csv") == "prompts.csv"


def test_the_deciding_metric_comes_first():
    assert primary_rank("win_rate") < primary_rank("perplexity") < primary_rank("unknown") == len(HEADLINE)


@pytest.mark.parametrize(
    "name",
    [
        "elo", "league_win_rate", "arc_easy/acc", "gsm8k/exact_match,strict-match", "rewardbench", "mean_of_subsets",
        "best_of_candidates", "best_of_16", "agreement", "md_digits@900", "mind@50000", "cmmd@900", "cmmd_clip@900", "coverage_digits@900",
        "coverage@900", "extrapolated_fd_digits@900", "extrapolated_fid@900", "truthfulqa_mc1", "stereoset_icat", "stereoset_ss", "sycophancy_rate",
    ],
)  # fmt: skip
def test_what_a_whole_suite_measures_is_a_headline_beside_others(name):
    board = Leaderboard(
        [result("a", number("win_rate", 0.6, 0.5, 0.7), number(name, 0.5, 0.4, 0.6), number("other", 0.5, 0.4, 0.6))]
    )
    assert sorted(c.name for c in board.headline) == sorted(["win_rate", name])


def test_parts_of_a_number_are_no_headlines():
    board = Leaderboard([result("a", *(number(n, 0.5, 0.4, 0.6) for n in ("accuracy", "elo/b", "rewardbench/Chat")))])
    assert [c.name for c in board.headline] == ["accuracy"]
    assert title_of("arc_easy/acc") == "arc_easy/acc" and title_of("best_of_16") == "Best of 16"


def test_the_ranks_of_a_leagues_own_tests_are_shown():
    """All three intervals overlap; the league's tests tell c apart."""
    extras = {"a": (1, 2, 1), "b": (1, 2, 1), "c": (3, 3, 3)}
    values = {"a": 1030, "b": 1010, "c": 960}
    board = Leaderboard(
        [
            result(n, number("elo", values[n], values[n] - 40, values[n] + 40, extra=dict(rank_best=b, rank_worst=w, group=g)), suite="duels")
            for n, (b, w, g) in extras.items()
        ]
    )  # fmt: skip
    assert ranks(board, "elo") == {"a": (1, True), "b": (1, True), "c": (3, False)}
    (column,) = board.columns
    found = {row.name: row.cells[column.key].ranks for row in board.rows}
    assert {n: (r.best, r.worst) for n, r in found.items()} == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}
    assert "a and b are tied on elo, since no test tells them apart" in sentence(board)


def test_a_cell_has_no_p_value_that_is_not_corrected():
    comparison = Comparison("an even match", 0.2, 0.1, 0.3, 0.0004, "exact sign test", 100)
    board = Leaderboard([result("a", number("win_rate", 0.7, 0.6, 0.8, unit="share", comparison=comparison))])
    (row,) = board_view(board, {"a": 0}).table.rows
    assert row.cells[0].change == "+20 vs an even match"
    assert [(r.p, r.holm) for r in comparison_rows([board])] == [("< .001", "< .001")]
