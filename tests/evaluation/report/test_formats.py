"""The same results in other tools' formats: each file is read back by the tool that defines it, or checked against its schema."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries

from data.sources import HubName
from evaluation.report.collect import Collection, FoundResult, collect
from evaluation.report.export import to_csv, to_markdown
from evaluation.report.formats import write_exports
from evaluation.report.formats.every_eval_ever import record
from evaluation.report.formats.hub import eval_result_entry, model_index_entries
from evaluation.report.formats.latex import latex_text, to_latex
from evaluation.report.formats.lm_eval import results_record
from evaluation.report.formats.naming import hub_dataset, model_identifier, slug, stable_uuid, task_name
from evaluation.report.items import SampleReader
from evaluation.report.leaderboard import leaderboards
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject, SubjectKind
from evaluation.suites.report import EXPORTS
from tests.evaluation.report.every_eval_ever_types import Instance, Log


@pytest.fixture(scope="module")
def found(lifecycle):
    return collect([lifecycle])


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    write_exports(folder, found, EXPORTS, SampleReader())
    return folder


@pytest.fixture(scope="module")
def hostile(hostile_lifecycle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    write_exports(folder, collect([hostile_lifecycle]), EXPORTS, SampleReader())
    return folder


def hub_result(**more):
    metrics = [
        Metric("win_rate", 0.66, 400, 0.61, 0.71, ci_method="wilson", higher_is_better=True, unit="share"),
        Metric("mean_length", 9.0, 400, higher_is_better=None, unit="tokens"),
    ]
    protocol = Protocol(dataset="hub:org/set:hard@" + "a" * 40 + "::test", dataset_sha256="c" * 64, n_items=400)
    subject = Subject("ppo", "language model", "hub:me/model@main", "d" * 64)
    return EvaluationResult("win-rate", subject, protocol, metrics, created="2026-01-02T03:04:05+00:00", **more)


# ---------------------------------------------------------------------------------------------- names


def test_names_are_safe_and_stay_distinct():
    assert slug("a-b_c.1") == "a-b_c.1" and slug("a/b") != slug("a b") and "/" not in slug("../../etc")
    assert slug("..") not in ("", "..") and len(slug("x" * 500)) < 80
    assert hub_dataset("hub:org/set:hard@main::eval") == HubName("org/set", "hard", "main", "train")
    assert hub_dataset("hub:org/set:hard#test[:10]::eval") == HubName("org/set", "hard", None, "test[:10]")
    assert hub_dataset("hub:set") is None and hub_dataset("hub:no name/x") is None
    assert hub_dataset("/data/x.jsonl") is None and hub_dataset("embedded:digits") is None
    assert model_identifier(hub_result()) == "me/model"
    assert stable_uuid("a") == stable_uuid("a") != stable_uuid("b") and stable_uuid("a")[14] == "4"


def test_two_protocols_never_meet_in_one_task():
    one = hub_result()
    two = dataclasses.replace(one, protocol=dataclasses.replace(one.protocol, settings={"precision": "bf16"}))
    assert task_name(one) != task_name(two)
    tasks = {task_name(r): FoundResult(Path("x"), r) for r in (one, two)}
    assert len(results_record("m", tasks)["results"]) == 2


# ---------------------------------------------------------------------------------------------- lm-eval

RESULT_KEYS = {
    "results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "samples",
    "config", "git_hash", "date", "pretty_env_info", "transformers_version", "lm_eval_version", "upper_git_hash",
    "tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "max_length", "model_source",
    "model_name", "model_name_sanitized", "system_instruction", "system_instruction_sha", "fewshot_as_multiturn",
    "chat_template", "chat_template_sha", "task_hashes", "total_evaluation_time_seconds",
}  # fmt: skip
"""What lm_eval.result_schema.EvalResults of 0.4.13 knows."""
SAMPLE_KEYS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip


def test_lm_eval_results(written, found):
    (path,) = (written / "lm_eval" / "local__ppo").glob("results_*.json")
    content = json.loads(path.read_text())
    assert set(content) <= RESULT_KEYS
    task = next(t for t in content["results"] if t.startswith("win-rate"))
    values = content["results"][task]
    assert values["win_rate,none"] == 0.66 and values["win_rate_stderr,none"] == pytest.approx(0.0237, abs=2e-4)
    assert values["name"] == values["alias"] == task and values["sample_len"] == 400
    assert content["n-samples"][task] == {"original": 400, "effective": 400}
    assert content["higher_is_better"][task]["win_rate"] is True
    assert all(set(content[k]) == set(content["results"]) for k in ("configs", "versions", "n-shot", "group_subtasks"))
    assert all("," in key for key in values if key not in ("name", "alias", "sample_len"))


def test_lm_evals_tasks_keep_their_own_number_of_examples():
    def task(name, shots):
        entry = Metric(f"{name}/acc", 0.5, 2, 0.4, 0.6, ci_method="wilson", higher_is_better=True)
        protocol = Protocol(f"lm-eval:{name}", "c" * 64, 2, settings={"num_fewshot": shots})
        subject = Subject("m", "language model", sha256="d" * 64)
        return EvaluationResult("text", subject, protocol, [entry], created="2026-01-02T03:04:05+00:00")

    tasks = {task_name(r): FoundResult(Path("x"), r) for r in (task("arc", 5), task("piqa", 0))}
    content = results_record("m", tasks)
    assert {t.split("_")[1][:12]: n for t, n in content["n-shot"].items()} == {"lm-eval-arc-": 5, "lm-eval-piqa": 0}
    assert sorted(c["num_fewshot"] for c in content["configs"].values()) == [0, 5]


def test_lm_eval_samples_have_the_scores_of_the_metrics(written):
    (path,) = (written / "lm_eval" / "local__ppo").glob("samples_win-rate_*.jsonl")
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert len(rows) == 400 and [row["doc_id"] for row in rows] == list(range(400))
    assert all(set(row) >= SAMPLE_KEYS and set(row["metrics"]) <= set(row) for row in rows)
    assert sum(row["win_rate"] for row in rows) / 400 == pytest.approx(0.66)
    assert rows[0]["resps"] == [[rows[0]["doc"]["completion"]]] and rows[0]["filter"] == "none"
    assert len({row["doc_hash"] for row in rows}) == 400 and all(len(row["prompt_hash"]) == 64 for row in rows)


def test_lm_eval_itself_prints_our_results(written):
    utils = pytest.importorskip("lm_eval.utils", reason="lm-eval is not installed")
    for path in (written / "lm_eval").rglob("results_*.json"):
        table = utils.make_table(json.loads(path.read_text()))
        assert "|" in table
    assert "0.6600" in utils.make_table(
        json.loads(next((written / "lm_eval" / "local__ppo").glob("results_*")).read_text())
    )


# ---------------------------------------------------------------------------------------------- Every Eval Ever


def eee_records(folder):
    return {p: json.loads(p.read_text()) for p in sorted((folder / "every_eval_ever").rglob("*.json"))}


@pytest.mark.parametrize("which", ["written", "hostile"])
def test_every_eval_ever_records_follow_the_format(which, request, found):
    folder = request.getfixturevalue(which)
    records = eee_records(folder)
    assert len(records) == len(found.results)
    for path, content in records.items():
        log = Log.model_validate(content)
        if detailed := log.detailed_evaluation_results:
            samples = folder / "every_eval_ever" / detailed.file_path
            lines = [line for line in samples.read_text().split("\n") if line]
            assert len(lines) == detailed.total_rows and samples.parent == path.parent
            for line in lines:
                Instance.model_validate(json.loads(line))


def test_every_eval_ever_keeps_numbers_and_uncertainty(written):
    content = next(c for p, c in eee_records(written).items() if "win-rate" in str(p) and p.parent.name == "ppo")
    entry = next(r for r in content["evaluation_results"] if r["metric_config"]["metric_name"] == "win_rate")
    interval = entry["score_details"]["uncertainty"]["confidence_interval"]
    assert entry["score_details"]["score"] == 0.66 and interval["lower"] == pytest.approx(0.6122, abs=1e-3)
    assert entry["metric_config"]["llm_scoring"]["judges"][0]["model_info"]["additional_details"]["sha256"] == "d" * 64
    assert (entry["metric_config"]["min_score"], entry["metric_config"]["max_score"]) == (0.0, 1.0)
    assert all(_within_its_range(r) for c in eee_records(written).values() for r in c["evaluation_results"])
    length = next(r for r in content["evaluation_results"] if r["metric_config"]["metric_name"] == "kl_k1")
    assert length["metric_config"]["additional_details"]["direction"] == "none"


def _within_its_range(entry):
    low, high = entry["metric_config"]["min_score"], entry["metric_config"]["max_score"]
    score = entry["score_details"]["score"]
    return (low is None or low <= score) and (high is None or score <= high)


def test_every_eval_ever_writes_the_range_of_the_metric_and_not_of_its_unit(found):
    bias = Metric("position_bias", -0.15, 40, unit="share", extra={"bounds": [-0.5, 0.5]})
    metrics = [
        bias,
        dataclasses.replace(bias, name="x", unit="nats", extra={}),
        dataclasses.replace(bias, unit="tokens", value=3.0, extra={}),
    ]
    result = dataclasses.replace(found.results[0].result, metrics=metrics)
    ranges = [
        (c["min_score"], c["max_score"]) for c in (r["metric_config"] for r in record(result)["evaluation_results"])
    ]
    assert ranges == [(-0.5, 0.5), (None, None), (0.0, None)]


def test_every_eval_evers_own_schema(written, hostile):
    """With the package itself (it needs Python 3.12), or its schema files in ALIGNKIT_EEE_SCHEMAS."""
    import os

    validator = pytest.importorskip("jsonschema", reason="jsonschema is not installed").Draft7Validator
    place = os.environ.get("ALIGNKIT_EEE_SCHEMAS")
    if not place:
        place = (
            Path(pytest.importorskip("every_eval_ever", reason="every-eval-ever is not installed").__file__).parent
            / "schemas"
        )
    whole, instance = (
        validator(json.loads((Path(place) / f"{name}.schema.json").read_text()))
        for name in ("eval", "instance_level_eval")
    )
    for folder in (written, hostile):
        for content in eee_records(folder).values():
            whole.validate(content)
        for path in (folder / "every_eval_ever").rglob("*_samples.jsonl"):
            for line in path.read_text().split("\n"):
                if line:
                    instance.validate(json.loads(line))


def test_a_hub_data_set_is_named_as_one():
    source = record(hub_result())["evaluation_results"][0]["source_data"]
    assert source["source_type"] == "hf_dataset" and source["hf_repo"] == "org/set" and source["samples_number"] == 400


# ---------------------------------------------------------------------------------------------- the hub


def test_eval_results_yaml_is_read_back(tmp_path):
    collection = Collection([FoundResult(tmp_path, hub_result())], [], [])
    write_exports(tmp_path, collection, ["hub"], SampleReader())
    (path,) = (tmp_path / "hub" / "me__model" / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision, entry.value) == ("org/set", "hard", "a" * 40, 0.66)
    assert entry.date == "2026-01-02T03:04:05+00:00"
    assert entry.notes == "win_rate (share): 95% interval [0.6100, 0.7100], wilson, n = 400; alignkit"


def test_a_named_split_of_the_hub_is_kept(tmp_path):
    protocol = dataclasses.replace(hub_result().protocol, dataset="hub:x/y#test::eval", split="eval")
    result = dataclasses.replace(hub_result(), protocol=protocol)
    entry = eval_result_entry(result)
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("x/y", "default", None)
    assert {(e.dataset_type, e.dataset_split) for e in model_index_entries(result)} == {("x/y", "test::eval")}
    source = record(result)["evaluation_results"][0]["source_data"]
    assert source["hf_repo"] == "x/y" and source["additional_details"]["split"] == "test::eval"


def test_data_that_is_not_on_the_hub_has_no_entry(found):
    assert all(eval_result_entry(entry.result) is None for entry in found.results)


@pytest.mark.parametrize("which", ["written", "hostile"])
def test_model_index_is_read_back(which, request):
    cards = list((request.getfixturevalue(which) / "model_index").glob("*.md"))
    assert len(cards) >= 12
    for path in cards:
        loaded = ModelCard.load(path, ignore_metadata_errors=False).data
        assert loaded.eval_results and all(isinstance(r.metric_value, (int, float)) for r in loaded.eval_results)


def test_model_index_keeps_the_interval(written):
    loaded = ModelCard.load(written / "model_index" / "local__ppo.md").data
    assert loaded.model_name == "ppo"
    entry = next(r for r in loaded.eval_results if r.metric_type == "win_rate")
    assert entry.metric_value == 0.66 and entry.metric_args["n"] == 400 and entry.task_type == "text-generation"
    assert entry.metric_args["ci_low"] == pytest.approx(0.6122, abs=1e-3)


@pytest.mark.parametrize("kind", get_args(SubjectKind))
def test_every_kind_of_subject_has_a_table_and_every_format(kind, tmp_path):
    result = dataclasses.replace(hub_result(), subject=Subject("x", kind, "x", "d" * 64))
    (board,) = leaderboards([result])
    assert [row.name for row in board.rows] == ["x"]
    write_exports(tmp_path, Collection([FoundResult(tmp_path, result)], [], []), EXPORTS, SampleReader())
    assert {path.name for path in tmp_path.iterdir()} == {name.replace("-", "_") for name in EXPORTS}


# ---------------------------------------------------------------------------------------------- tables


def latex_rows(text):
    """The cells of every row of every tabular; fails where braces or environments do not match."""
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
    bare = re.sub(r"\\[\\{}$&#%_,]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    rows: list[Any] = []
    for spec, body in re.findall(r"\\begin\{tabular\}\{(l r*|l*r*)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in body.strip().split("\n") if line != r"\hline"]
        assert all(line.endswith(r" \\") for line in lines)
        cells = [re.split(r"(?<!\\)&", line.removesuffix(r" \\")) for line in lines]
        assert {len(row) for row in cells} == {len(spec)}
        rows += cells
    return rows


def test_latex_has_the_numbers(found):
    rows = latex_rows(to_latex(leaderboards([e.result for e in found.results]), "A title"))
    (ppo,) = [row for row in rows if row[0].strip() == "ppo"]
    assert ppo[1].strip() == r"\textbf{66.0}\textsuperscript{1=} {[}61.2, 70.5{]}"


def test_hostile_text_is_no_command(hostile_lifecycle):
    text = to_latex(leaderboards([e.result for e in collect([hostile_lifecycle]).results]), "x\n\\input{/etc/passwd}")
    assert latex_rows(text) and r"\input{" not in text
    commands = set(re.findall(r"\\([a-zA-Z]+)", text))
    assert commands <= {
        "begin", "end", "caption", "label", "hline", "textbf", "textit", "textsuperscript", "uparrow", "downarrow", "ldots",
        "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textquotedbl",
    }  # fmt: skip
    assert latex_text("50% & _x_ {a} \\end") == r"50\% \& \_x\_ \{a\} \textbackslash{}end"


def test_markdown_is_read_as_tables(found):
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    boards = leaderboards([e.result for e in found.results])
    tokens = parser.parse(to_markdown(boards, [], "A title"))
    rows = sum(token.type == "tr_open" for token in tokens)
    assert sum(token.type == "table_open" for token in tokens) == len(boards)
    assert rows == sum(len(b.rows) + 1 for b in boards)
    assert not any(token.type == "html_block" for token in tokens)


def test_csv_is_read_back_with_every_number(found):
    boards = leaderboards([e.result for e in found.results])
    rows = list(csv.DictReader(io.StringIO(to_csv(boards))))
    assert len(rows) == sum(len(row.cells) for board in boards for row in board.rows)
