"""`evaluate text` measures several things at once; each number meets those of the same thing, and no others."""

import json

import pytest

from evaluation.report.changes import compare_runs
from evaluation.report.collect import collect
from evaluation.report.formats.every_eval_ever import write_every_eval_ever
from evaluation.report.formats.hub import write_model_index
from evaluation.report.formats.lm_eval import write_lm_eval
from evaluation.report.items import SampleReader
from evaluation.report.leaderboard import Leaderboard
from evaluation.report.viewer import sample_sets
from evaluation.suites.reward import STAGE as REWARD
from evaluation.suites.safety import STAGE as SAFETY
from evaluation.suites.text import STAGE
from launch.config import build
from launch.stage import run_stage
from tests.evaluation.language.harness_tasks import KINDS
from tests.evaluation.rows import write_completions

TEXTS = ["first held-out text", "second, somewhat longer held-out text. " * 3]
ANSWERS = ["one two three", "one two", "so so so so so so", "a longer answer than the others are"]
FILES = iter(range(1000))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


def answers(folder, prompt="p", temperature=None, shift=0, samples=1):
    """A file of completions; of `generate` at a temperature, where one is given."""
    place = folder / f"completions-{next(FILES)}"
    place.mkdir(parents=True)
    rows = [
        {"prompt": f"{prompt}{n // samples}", "completion": ANSWERS[(n + shift) % len(ANSWERS)]}
        for n in range(4 * samples)
    ]
    path = write_completions(place / "completions.jsonl", rows)
    if temperature is not None:
        made = {"prompts": "embedded:docstrings::eval", "temperature": temperature, "max_new_tokens": 32, "seed": shift}
        inputs = {"prompts": {"source": made["prompts"], "sha256": "f" * 64}}
        record = {"stage": "generate", "config": made, "inputs": inputs, "seconds": 1.0, "content_sha256": "1" * 64}
        (place / "provenance.json").write_text(json.dumps(record))
    return path


def measure(folder, stage=STAGE, **values):
    """Run a suite and find its results as a report does."""
    config = {key: v if isinstance(v, int) else str(v) for key, v in values.items()}
    run_stage(stage, build(stage.config, {"output_dir": str(folder), **config}, "test"))
    return collect([folder])


def columns(name, *found):
    """The subjects in each column of a metric."""
    board = Leaderboard([entry.result for one in found for entry in one.results])
    chosen = [c for c in board.columns if c.name == name]
    return [[row.name for row in board.rows if c.key in row.cells] for c in chosen], board


DESCRIPTIVE = ("mean_length", "self_bleu", "distinct_2", "repetition_4", "share_finished")


@pytest.mark.parametrize(
    ("ours", "theirs", "differs"),
    [
        ({"prompt": "p"}, {"prompt": "q"}, "dataset_sha256"),
        ({"temperature": 0.7}, {"temperature": 1.3}, "decoding.temperature"),
        ({"temperature": 0.7}, {"temperature": 0.7, "prompt": "q"}, "dataset_sha256"),
    ],
    ids=["other prompts", "another temperature", "other prompts of one source"],
)
def test_what_other_prompts_or_another_temperature_gave_is_never_merged(
    models, documents, tmp_path, ours, theirs, differs
):
    found = [
        measure(
            tmp_path / name, model=models / name, documents=documents, completions=answers(tmp_path, shift=n, **made)
        )
        for n, (name, made) in enumerate({"policy": ours, "reference": theirs}.items())
    ]
    for name in DESCRIPTIVE:
        (parted, board) = columns(name, *found)
        assert sorted(parted) == [["policy"], ["reference"]], name
        assert all(r.cells[c.key].rank is None for r in board.rows for c in board.columns if c.name == name and c.key in r.cells)  # fmt: skip
    (warning,) = [w for w in board.warnings if w.startswith("Measured under several protocols")]
    assert f"mean_length (2, which differ in {differs})" in warning and "bits_per_byte" not in warning
    titles = [c.full_title for c in board.columns if c.name == "mean_length"]
    assert len(set(titles)) == 2
    (together, _) = columns("bits_per_byte", *found)
    assert [sorted(names) for names in together] == [["policy", "reference"]]


def test_an_earlier_run_with_other_prompts_is_refused(models, documents, tmp_path):
    before, now = (
        measure(
            tmp_path / name, name="m", model=models / "policy", documents=documents, completions=answers(tmp_path, p)
        )
        for name, p in (("before", "p"), ("now", "q"))
    )
    changes = compare_runs(before.results, now.results, SampleReader())
    compared = {change.now.name for change in changes.changes}
    assert "bits_per_byte" in compared and not compared & {"self_bleu", "repetition_4", "distinct_2", "share_finished"}
    assert any("repetition_4 (text) was measured under another protocol" in line for line in changes.refused)


def test_what_is_measured_beside_documents_does_not_part_them(models, documents, task_folder, tmp_path):
    same = dict(documents=documents, include_path=task_folder)
    found = [
        measure(tmp_path / "a", name="a", model=models / "policy", documents=documents),
        measure(tmp_path / "b", name="b", model=models / "policy", documents=documents, completions=answers(tmp_path)),
        measure(tmp_path / "c", name="c", model=models / "reference", tasks="local_cloze", **same),
        measure(tmp_path / "d", name="d", model=models / "reference", tasks="local_cloze,local_rolling", **same),
    ]
    for name, subjects in (("bits_per_byte", "abcd"), ("local_cloze/acc", "cd")):
        (together, board) = columns(name, *found)
        assert [sorted(names) for names in together] == [list(subjects)], name
    assert not any("several protocols" in warning for warning in board.warnings)


def test_an_added_task_leaves_the_old_numbers_comparable(models, documents, task_folder, tmp_path):
    same = dict(model=models / "policy", name="m", documents=documents, include_path=task_folder)
    before = measure(tmp_path / "before", tasks="local_cloze", **same)
    now = measure(
        tmp_path / "now", tasks="local_cloze,local_choice", num_fewshot=0, completions=answers(tmp_path), **same
    )
    changes = compare_runs(before.results, now.results, SampleReader())
    names = {change.now.name for change in changes.changes}
    assert changes.refused == [] and {"bits_per_byte", "local_cloze/acc"} <= names
    assert all(change.verdict != "worse" for change in changes.changes)


@pytest.fixture(scope="module")
def whole(models, documents, task_folder, tmp_path_factory):
    """A run with documents, two tasks and completions, and what exports make of it."""
    root = tmp_path_factory.mktemp("whole")
    found = measure(
        root / "run", model=models / "policy", documents=documents, include_path=task_folder,
        tasks="local_choice,local_cloze", num_fewshot=1, completions=answers(root, temperature=0.7, samples=2),
    )  # fmt: skip
    for write, name in (
        (write_lm_eval, "lm_eval"),
        (write_every_eval_ever, "every_eval_ever"),
        (write_model_index, "index"),
    ):
        write(root / name, found, SampleReader())
    return root, found


def test_every_part_counts_its_own_items(whole):
    _, found = whole
    counts = {
        entry.result.protocol.dataset.rsplit("/", 1)[-1]: entry.result.protocol.n_items for entry in found.results
    }
    assert counts == {
        "held-out.jsonl": 2, "lm-eval:local_choice": 12, "lm-eval:local_cloze": 4, "embedded:docstrings::eval": 8,
    }  # fmt: skip
    assert all(entry.result.samples.rows == entry.result.protocol.n_items for entry in found.results)
    assert all("dataset" not in m.extra for entry in found.results for m in entry.result.metrics)
    hashes = {entry.result.protocol.dataset_sha256 for entry in found.results}
    assert len(hashes) == 4 and all(len(value) == 64 for value in hashes)


def test_lm_eval_is_told_how_many_items_a_number_has(whole):
    root, _ = whole
    (path,) = root.glob("lm_eval/*/results_*.json")
    content = json.loads(path.read_text())
    items = {"bits_per_byte": 2, "local_choice/acc": 12, "local_cloze/acc": 4, "mean_length": 8}
    for name, n in items.items():
        (task,) = [t for t, values in content["results"].items() if f"{name},none" in values]
        assert content["n-samples"][task] == {"original": n, "effective": n}
        assert content["results"][task]["sample_len"] == n
        (samples,) = path.parent.glob(f"samples_{task}_*.jsonl")
        assert len(samples.read_text().splitlines()) == n
    shots = {t: n for t, n in content["n-shot"].items() if "local" in t}
    assert sorted(shots.values()) == [1, 1] and len(content["n-shot"]) == 4


def test_every_eval_ever_names_the_data_of_each_number(whole, documents):
    root, _ = whole
    records = [json.loads(p.read_text()) for p in (root / "every_eval_ever").rglob("*.json")]
    source = {r["metric_config"]["metric_name"]: r["source_data"] for c in records for r in c["evaluation_results"]}
    expected = {
        "bits_per_byte": str(documents), "mean_length": "embedded:docstrings::eval",
        "local_choice/acc": "lm-eval:local_choice", "local_cloze/acc": "lm-eval:local_cloze",
    }  # fmt: skip
    assert {name: source[name]["dataset_name"] for name in expected} == expected
    assert len({source[name]["additional_details"]["sha256"] for name in expected}) == 4
    (made,) = [
        r["generation_config"]["generation_args"]
        for c in records
        for r in c["evaluation_results"]
        if r["metric_config"]["metric_name"] == "mean_length"
    ]
    assert (made["temperature"], made["max_tokens"]) == (0.7, 32)


def test_a_model_card_names_the_data_of_each_number(whole):
    root, _ = whole
    (path,) = (root / "index").glob("*.md")
    entries = [line.strip() for line in path.read_text().splitlines() if "name: " in line and "(text, " in line]
    parts = {line.split("name: ")[1].split(" (text")[0].strip("'") for line in entries}
    assert {p.rsplit("/", 1)[-1] for p in parts} == {
        "held-out.jsonl", "embedded:docstrings::eval", "lm-eval:local_choice", "lm-eval:local_cloze",
    }  # fmt: skip


def test_the_viewer_has_a_set_for_each_part(whole):
    _, found = whole
    sets = {group.title.rsplit("/", 1)[-1]: group for group in sample_sets(found.results, SampleReader())}
    assert {title: len(group.items) for title, group in sets.items()} == {
        "held-out.jsonl": 2, "text, embedded:docstrings::eval": 8,
        "text, lm-eval:local_choice": 12, "text, lm-eval:local_cloze": 4,
    }  # fmt: skip


def test_the_tasks_of_one_group_and_the_group_have_results_of_their_own(models, task_folder, tmp_path):
    (task_folder / "pair.yaml").write_text(
        "group: pair\ntask: [local_cloze, local_choice]\naggregate_metric_list:\n  - {metric: acc, weight_by_size: true}\n"
    )
    try:
        found = measure(tmp_path / "out", model=models / "policy", tasks="pair", include_path=task_folder)
    finally:
        (task_folder / "pair.yaml").unlink()
    protocols = {entry.result.protocol.dataset: entry.result.protocol for entry in found.results}
    assert set(protocols) == {"lm-eval:pair", "lm-eval:local_cloze", "lm-eval:local_choice"}
    assert {name: p.n_items for name, p in protocols.items()} == {
        "lm-eval:pair": 16, "lm-eval:local_cloze": 4, "lm-eval:local_choice": 12,
    }  # fmt: skip
    assert len({p.dataset_sha256 for p in protocols.values()}) == 3


def test_what_generates_in_a_task_says_how(models, task_folder, tmp_path):
    found = measure(tmp_path / "out", model=models / "policy", tasks="local_generation", include_path=task_folder)
    (entry,) = found.results
    assert entry.result.protocol.decoding == {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    assert len(KINDS) == 4


# ---------------------------------------------------------------------------------------------- prompts by their content


def suites(models):
    judged = dict(stage=REWARD, judge=models / "judge", baseline_name="base", mode="win-rate")
    return {
        "safety": (dict(stage=SAFETY), "degenerate_rate", 1),
        "win-rate": (judged, "win_rate", 1),
        "best-of-n": (dict(stage=REWARD, judge=models / "judge", mode="best-of-n"), "best_of_1", 2),
    }


@pytest.mark.parametrize("suite", ["safety", "win-rate", "best-of-n"])
def test_completions_without_provenance_meet_where_their_prompts_are_the_same(models, tmp_path, suite):
    arguments, metric, samples = suites(models)[suite]
    base = {"baseline": answers(tmp_path, shift=2)} if suite == "win-rate" else {}
    other = {"baseline": answers(tmp_path, "q", shift=2)} if suite == "win-rate" else {}
    found = [
        measure(
            tmp_path / name,
            name=name,
            completions=answers(tmp_path, prompt, shift=n, samples=samples),
            **arguments,
            **against,
        )
        for n, (name, prompt, against) in enumerate((("a", "p", base), ("b", "p", base), ("c", "q", other)))
    ]
    (together, _) = columns(metric, *found)
    assert sorted(sorted(names) for names in together) == [["a", "b"], ["c"]]
