"""The stage `report`: its four files, and hostile text in every one of them."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from evaluation.report import leaderboards, print_leaderboard
from evaluation.report.collect import collect
from evaluation.report.export import to_csv, to_json
from evaluation.suites import report
from evaluation.suites.report import STAGE, ReportConfig
from launch.config import build
from launch.errors import UserError

FILES = ("index.html", *(f"leaderboard.{end}" for end in ("json", "csv", "md", "tex", "txt")))


def write_report(inputs, out):
    out.mkdir(parents=True, exist_ok=True)
    job = SimpleNamespace(runtime=SimpleNamespace(is_main=True), output_dir=out, say=lambda text: None)
    config = ReportConfig(output_dir=str(out), inputs=[str(i) for i in inputs], title="A <b>title</b>", show=False)
    return STAGE.run(config, job)


@pytest.fixture(scope="module")
def written(lifecycle, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return out, write_report([lifecycle], out)


@pytest.fixture(scope="module")
def hostile(hostile_lifecycle, tmp_path_factory):
    out = tmp_path_factory.mktemp("hostile")
    write_report([hostile_lifecycle], out)
    return out


class Page(HTMLParser):
    """Tags with their attributes, the texts, and the fragments that are linked to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.ids, self.links = [], [], set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            if name == "id":
                assert value not in self.ids, f"id {value} is used twice"
                self.ids.add(value)
            if name == "href" and tag == "a":
                self.links.add(value)

    def handle_data(self, data):
        self.texts.append(data)


def test_summary_and_files(written):
    out, summary = written
    assert {p.name for p in out.iterdir()} == {*FILES, "exports"}
    assert {p.name for p in (out / "exports").iterdir()} == {"lm_eval", "every_eval_ever", "model_index"}
    assert summary == {"evaluations": 20, "stages": 13, "subjects": 12, "warnings": 3}


def test_the_text_file_fits_its_width_and_has_the_numbers(written):
    lines = (written[0] / "leaderboard.txt").read_text().splitlines()
    assert max(map(len, lines)) <= 100 and "\x1b" not in "".join(lines)
    table = json.loads((written[0] / "leaderboard.json").read_text())
    assert all(any(board["title"] == line for line in lines) for board in table["leaderboards"])


def test_same_input_gives_the_same_bytes(written, lifecycle, tmp_path):
    write_report([lifecycle], tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()


def test_a_baseline_that_cannot_be_one(lifecycle, tmp_path):
    job = SimpleNamespace(runtime=SimpleNamespace(is_main=True), output_dir=tmp_path, say=lambda text: None)
    config = ReportConfig(output_dir=str(tmp_path), inputs=[str(lifecycle)], baseline="stf", show=False)
    with pytest.raises(UserError, match="baseline: no entry 'stf' can be compared in pairs; did you mean 'sft'"):
        STAGE.run(config, job)


def test_json_holds_paired_differences_once(written):
    content = json.loads((written[0] / "leaderboard.json").read_text())
    (win,) = [d for d in content["paired"]["Language models"] if d["column"].startswith("win-rate/win_rate#")]
    assert (win["ours"], win["theirs"], win["value"]) == ("ppo", "dpo", pytest.approx(0.08)) and win[
        "low"
    ] < 0.08 < win["high"]


def test_json_holds_raw_numbers_and_ranks(written):
    content = json.loads((written[0] / "leaderboard.json").read_text())
    models, rewards, images, detectors = content["leaderboards"]
    assert [row["name"] for row in models["rows"]] == ["ppo", "dpo", "pretrain", "sft"]
    key = next(c["key"] for c in models["columns"] if c["name"] == "win_rate")
    assert models["primary"] == key
    cell = models["rows"][0]["cells"][key]
    assert cell["value"] == 0.66 and cell["rank"] == 1 and cell["tied"] is True
    assert cell["ci_low"] == pytest.approx(0.6122, abs=1e-3) and cell["n"] == 400
    assert [row["name"] for row in images["rows"]][:3] == ["diffusion", "gan", "vae"]
    assert [r["reference"] for r in images["rows"]] == [False] * 3 + [True] * 2
    assert rewards["title"] == "Reward models" and len(detectors["rows"]) == 1


def test_csv_has_one_line_for_each_number(written):
    rows = list(csv.DictReader(io.StringIO((written[0] / "leaderboard.csv").read_text())))
    line = next(r for r in rows if r["subject"] == "ppo" and r["metric"] == "win_rate")
    assert line["value"] == "0.66" and line["rank"] == "1" and line["baseline"] == "sft" and line["n"] == "400"
    assert len({(r["subject"], r["metric"], r["suite"]) for r in rows}) == len(rows)


def test_markdown_table(written):
    text = (written[0] / "leaderboard.md").read_text()
    assert "# A &lt;b&gt;title&lt;/b&gt;" in text
    assert "| ppo | 66.0 \\[61.2, 70.5\\] (1=) |" in text
    assert "| *real images (held out)* | 2.7" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables[:6]} == {13}


def test_the_page_is_whole(written):
    page = Page((written[0] / "index.html").read_text())
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    text = " ".join(" ".join(page.texts).split())
    for part in (
        "ppo and dpo are tied on win rate against sft", "diffusion leads on Fréchet distance: 6.2 [5.6, 6.8].", "A <b>title</b>",
        "13, 6 min 35 s of work", "Without an interval, and so not ranked: distinct_2.", "gold, reward: 4 pairs that people called ties",
        "+16.0 vs an even match", "Trained on", "Control, real against real: 0.510", "Largest gains over sft",
        "Most firmly wrong: gold", "explained_variance", "1 value was NaN or infinite", "made from", "reward, sft",
        "learning_rate: 0.001", "jackknife over 20 blocks, log scale", "protocol: judge", "1 more curve of ppo",
    ):  # fmt: skip
        assert part in text, part
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 10 and all(p["src"].startswith("data:image/png;base64,") and p["alt"] for p in pictures)
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")


def test_the_policy_forbids_scripts_and_requests(written):
    text = (written[0] / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy and re.search("script-src 'sha256-[^' ]+'; base-uri 'none'", policy)
    assert " style=" not in text and "http://" not in text and "https://" not in text


def test_hostile_text_is_text(hostile, written):
    page, plain = Page((hostile / "index.html").read_text()), Page((written[0] / "index.html").read_text())
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") or name in ("style", "srcdoc") for name in attrs), (tag, attrs)
        assert not str(attrs.get("href", "#")).startswith(("javascript", "http"))
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [a.get("type") for a in scripts] == ["application/json"] * (len(scripts) - 1) + [None]
    assert all(set(a) <= {"type", "id"} for a in scripts)
    text = "".join(page.texts)
    for part in (
        "<script>window.pwned=1;alert(1)</script>", '"><img src=x onerror=window.pwned=1>', "{{ 7*7 }}{% for x in [1] %}",
        "<meta http-equiv=refresh", "⟨U+202E⟩gnp.exe⟨U+2066⟩⟨U+0000⟩⟨U+0007⟩⟨U+200B⟩", "[26,000 more characters]",
    ):  # fmt: skip
        assert part in text, part
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)


def test_hostile_text_in_tables(hostile):
    rows = list(csv.reader(io.StringIO((hostile / "leaderboard.csv").read_text())))
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)
    markdown = (hostile / "leaderboard.md").read_text()
    assert not re.search(r"<[a-zA-Z/!]", markdown) and "://" not in markdown
    widths = {line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("| ")}
    assert max(widths) < 20
    json.loads((hostile / "leaderboard.json").read_text())


def test_lone_surrogates_can_be_written(lifecycle):
    boards = leaderboards([entry.result for entry in collect([lifecycle]).results])
    content = json.dumps(to_json(boards, ["\ud800 alone"]), ensure_ascii=False)
    assert "\ufffd alone" in content.encode().decode()
    assert to_csv(boards).encode()


def test_terminal(lifecycle):
    stream = io.StringIO()
    boards = leaderboards([entry.result for entry in collect([lifecycle]).results])
    print_leaderboard(boards, ["[bold]careful[/bold]\x1b[31m"], Console(file=stream, width=100))
    text = stream.getvalue()
    assert "Language models" in text and "66.0 (1=)" in text and "[61.2, 70.5]" in text and "baseline" in text
    assert "! [bold]careful[/bold]⟨U+001B⟩[31m" in text and "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 100


# ---------------------------------------------------------------------------------------------- command line


@pytest.fixture
def commands(monkeypatch, tmp_path):
    seen = []
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evaluation.suites.report.run_stage_command", lambda stage, words: seen.append(words))
    return seen


def test_folders_come_first_on_the_command_line(commands, tmp_path):
    report.main(["a", "b/c", "--output_dir", str(tmp_path), "--title", "x"])
    assert commands == [["--output_dir", str(tmp_path), "--title", "x", "--inputs", "a,b/c"]]
    with pytest.raises(UserError, match="comma"):
        report.main(["a,b", "--output_dir", str(tmp_path)])


def test_an_earlier_report_is_replaced_and_nothing_else(commands, tmp_path):
    words = ["a", "--output_dir", str(tmp_path)]
    report.main(words)
    (tmp_path / "run.json").write_text('{"stage": "report"}')
    report.main(words)
    (tmp_path / "run.json").write_text('{"stage": "ppo"}')
    report.main(words)
    assert [w[-1] for w in commands] == ["a", "--overwrite", "a"]


def test_without_inputs():
    with pytest.raises(UserError, match="inputs: is empty"):
        build(ReportConfig, {}, "command line")


def test_inputs_are_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").write_text("x")
    for name, what in (
        ("ruins", "no such folder; did you mean 'runs'"),
        ("file", "is a file"),
        ("a/b", "no such folder; give"),
    ):
        with pytest.raises(UserError, match=f"^inputs: {name}: {what}"):
            report.main([name, "--output_dir", "out"])


def test_runs_without_results(lifecycle, tmp_path):
    assert write_report([lifecycle / "sft"], tmp_path)["evaluations"] == 0
    page = "".join(Page((tmp_path / "index.html").read_text()).texts)
    assert "Lineage" in page and "Every number" not in page
    for name in ("index.html", "leaderboard.txt", "leaderboard.md", "leaderboard.json"):
        assert "No evaluation lies in these folders" in " ".join((tmp_path / name).read_text().split()), name


def test_results_without_stages(lifecycle, tmp_path):
    write_report([lifecycle / "text-sft"], tmp_path)
    page = Page((Path(tmp_path) / "index.html").read_text())
    assert "Lineage" not in "".join(page.texts) and "Bits per byte" in "".join(page.texts)
