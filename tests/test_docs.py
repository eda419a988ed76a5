"""The pages of docs/: tables hang together, items that are pointed to exist, benchmarks that are named can be run."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_blank_line_cuts_a_table(page):
    lines = page.read_text().split("\n")
    cut = [
        number + 1
        for number in range(2, len(lines) - 1)
        if lines[number].startswith("|") and lines[number - 1] == "" and lines[number - 2].startswith("|")
        if not re.fullmatch(r"[|:\- ]+", lines[number + 1])  # a table of its own begins with a head and its rule
    ]
    assert cut == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_items_that_are_below_are_on_the_page(page):
    text = page.read_text()
    for item in re.findall(r"below, (\d+)", text):
        assert re.search(rf"^{item}\. ", text, re.MULTILINE), f"item {item}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_benchmarks_that_are_named_can_be_run(page):
    for module, words in re.findall(r"python -m (benchmarks\.\w+)((?: \w+)?)", page.read_text()):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        if module == "benchmarks.evaluation":
            assert words.strip() in importlib.import_module(module).PARTS


def test_every_part_of_the_evaluations_benchmark_is_known():
    files = {path.stem.removeprefix("evaluation_") for path in (ROOT / "benchmarks").glob("evaluation_*.py")}
    assert files == set(importlib.import_module("benchmarks.evaluation").PARTS)
