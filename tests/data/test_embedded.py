"""The embedded text: extraction on small sources with known answers, and what the whole of it must keep."""

import ast
import inspect
import itertools
import json
import re

import numpy as np
import pytest

from data import digits, docstring_pairs, embedded, load_documents, load_pairs, python_prose
from data.python_docs import (
    Definition,
    comments,
    definitions,
    leak_check,
    pairs,
    paragraphs,
    prose,
    read_module,
    summary,
)
from data.records import Pair, normalise, words
from launch.errors import UserError

SOURCE = '''
"""Module text."""
import sys

async def fetch(url: str, *, limit: int = 3) -> bytes:
    """Fetch a page from the server.  More follows."""
    def inner():
        """Not reachable by a user."""

class Box(dict, metaclass=type):
    """Hold some things together."""
    if sys:
        def take(self, n=1, /, **rest):
            """take the first of them

            Longer text.
            """
    try:
        pass
    except ImportError:
        pass
    def silent(self): pass
    class Lid:
        """Close the box well."""
'''


def test_definitions_are_found_in_order_with_their_signatures():
    found = list(definitions(ast.parse(SOURCE), "pkg.mod"))
    assert [d.prompt for d in found] == [
        "async def pkg.mod.fetch(url: str, *, limit: int=3) -> bytes:",
        "class pkg.mod.Box(dict, metaclass=type):",
        "class pkg.mod.Box.Lid:",
        "def pkg.mod.Box.take(self, n=1, /, **rest):",
    ]
    assert [p.completion for p in pairs(found)] == [
        "Fetch a page from the server.",
        "Hold some things together.",
        "Close the box well.",
        "Take the first of them.",
    ]


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        ("Return the sum.\n\nMore.", "Return the sum."),
        ("return the\n   sum of both", "Return the sum of both."),
        ("Use a mapping, e.g. A dict. Then stop.", "Use a mapping, e.g. A dict."),
        ("Get it out. `it' may be a thing.", "Get it out."),
        ('Say "yes or no." Then stop.', 'Say "yes or no."'),
        ("os.path is used here", "os.path is used here."),
        ("Too short.", None),
        ("word " * 26, None),
        ("f(x) -> int. Return it.", None),
        ("fetch(url) gets a page", None),
        ("The value is x = 3", None),
        ("Parameters of the call:", None),
        ("Größe of the thing.", None),
        ("* a list item here", None),
        ("1 2 3 4 5 6 of it", None),
    ],
)
def test_summary(docstring, wanted):
    assert summary(docstring) == wanted


def test_first_of_equal_signatures_and_of_equal_summaries_wins():
    found = [
        Definition("m.f", "def m.f():", "Do one good thing."),
        Definition("m.f", "def m.f():", "Do another good thing."),
        Definition("m.g", "def m.g():", "Do one  good thing."),
        Definition("m.h", "def m.h():", "Do a third good thing."),
    ]
    assert [(p.origin, p.completion) for p in pairs(found)] == [
        ("m.f", "Do one good thing."),
        ("m.h", "Do a third good thing."),
    ]


def test_comments_and_paragraphs():
    source = "#!/bin/x\nx = 1  # not a block\n# One two\n#   three.\ny = 2\n# last"
    assert list(comments(source)) == ["!/bin/x", "One two\nthree.", "last"]
    text = "One two three four\nfive six seven eight.\n\n    >>> a = b\n\nToo short.\n\n  x = {1: 2} and y = [3] for all of these here"
    assert list(paragraphs(text)) == ["One two three four five six seven eight."]


def test_prose_leaves_out_paired_docstrings_and_quotes_of_them():
    long = "The text that nobody may see before the test."
    source = f'''"""About this module, which has words enough to count as prose.

As its author says: the text that nobody may see before the test. And more.
"""
# A comment of eight words is kept as prose.
#
def f():
    """{long}

    Its body explains in more than eight words what the function does.
    """
def g():
    """One. {"A docstring without a usable summary line still counts as English prose. " * 3}"""
'''
    module = read_module("m", source, with_definitions=True)
    taken = pairs(module.definitions)
    assert [p.completion for p in taken] == [long]
    (document,) = prose([module], {}, taken)
    assert document.origin == "m"
    parts = document.text.split("\n\n")
    assert parts[0].startswith("About this module") and parts[1].startswith("A comment of eight")
    assert len(parts) == 3 and parts[2].startswith("One. A docstring without")
    assert "before the test" not in document.text and "Its body explains" not in document.text
    copy = read_module("n", source.replace(long, "Too short."), with_definitions=True)  # its body, under no pair
    assert "Its body explains" not in prose([module, copy], {}, taken)[-1].text
    assert "Its body explains" in prose([copy], {}, [])[0].text


def test_leak_check_needs_the_whole_phrase():
    leaks = leak_check(["Return the very last item here.", "Return a copy."])
    assert leaks("so, RETURN the very\nlast item; here we go")
    assert not leaks("return the very last item there") and not leaks("return a copy.")


# ---------------------------------------------------------------------------------------------- the real thing


def test_amounts():
    found, documents = docstring_pairs(), python_prose()
    assert len(found) > 5_000  # 6,621 on CPython 3.11; fewer modules on newer ones
    assert sum(len(d.text) for d in documents) > 1_000_000  # 2.05M with the test suite's sources, 1.2M without
    assert len(documents) > 400
    assert load_pairs("embedded:docstrings") == found and load_documents("embedded:python-prose") == documents


def test_pairs_are_clean():
    found = docstring_pairs()
    assert len({normalise(p.prompt) for p in found}) == len({normalise(p.completion) for p in found}) == len(found)
    for pair in found:
        assert re.fullmatch(r"(async def|def|class) [\w.]+.*:", pair.prompt) and len(pair.prompt) <= 160
        assert 3 <= len(pair.completion.split()) <= 25 and pair.completion[-1] in ".!?\"')"
    assert {p.prompt: p.completion for p in found}["def shlex.split(s, comments=False, posix=True):"] == (
        "Split the string *s* using shell-like syntax."
    )


def test_no_summary_of_any_pair_is_in_the_prose():
    """Whatever is held out later, pretraining has not seen it: searched as plain substrings, another way than prose()."""
    haystack = " " + " ".join(" ".join(words(d.text)) for d in python_prose()) + " "
    needles = {" ".join(words(p.completion)) for p in docstring_pairs()}
    leaked = [n for n in needles if n.count(" ") >= 4 and f" {n} " in haystack]
    assert leaked == []


def test_no_body_of_a_paired_docstring_is_in_the_prose():
    """Found through import and inspect here, through ast there: no 60 characters of a paired docstring's body."""
    haystack = normalise(" ".join(d.text for d in python_prose()))
    checked = 0
    for pair in docstring_pairs():
        module, *path = pair.origin.split(".")
        if module in ("shlex", "textwrap", "tarfile", "heapq", "random", "shutil", "zipfile", "string", "bisect"):
            thing = __import__(module)
            for name in path:
                thing = getattr(thing, name, None)
            body = normalise(inspect.getdoc(thing) or "").partition(". ")[2]
            if len(body) > 120:
                assert body[30:90] not in haystack, pair.origin
                checked += 1
    assert checked > 50


def test_no_prompt_and_no_summary_in_two_splits():
    names = ("train/a", "train/b", "eval")
    parts = {name: load_pairs(f"embedded:docstrings::{name}") for name in names}
    assert sum(map(len, parts.values())) == len(docstring_pairs())
    for one, other in itertools.combinations(names, 2):
        assert not {p.prompt for p in parts[one]} & {p.prompt for p in parts[other]}
        assert not {normalise(p.completion) for p in parts[one]} & {normalise(p.completion) for p in parts[other]}
    shares = {name: len(part) / len(docstring_pairs()) for name, part in parts.items()}
    assert abs(shares["train/a"] - 0.45) < 0.03 and abs(shares["eval"] - 0.1) < 0.02


def test_prose_documents_are_real_text():
    documents = {d.origin: d.text for d in python_prose()}
    assert "semantically equivalent" in documents["topic yield"]
    text = "\n\n".join(documents.values())
    seen = [normalise(p) for p in text.split("\n\n")]
    assert len(seen) == len(set(seen))  # licence headers and the like come once
    assert sum(c.isalpha() or c.isspace() for c in text) / len(text) > 0.9


def test_cache_is_used_and_a_broken_one_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    answer = {"pairs": [["p", "c", "o"]], "documents": []}
    monkeypatch.setattr(embedded, "extract", lambda *_: made.append(1) or answer)
    for times in (1, 1):
        embedded._extracted.cache_clear()
        assert docstring_pairs() == [Pair("p", "c", "o")] and len(made) == times
    (file,) = (tmp_path / "alignkit").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    embedded._extracted.cache_clear()
    assert docstring_pairs() == [Pair("p", "c", "o")] and len(made) == 2
    tmp_path.joinpath("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot be made: works without
    embedded._extracted.cache_clear()
    assert docstring_pairs() == [Pair("p", "c", "o")] and len(made) == 3
    monkeypatch.undo()
    embedded._extracted.cache_clear()


def test_extraction_of_a_small_library(tmp_path):
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pkg" / "test").mkdir(parents=True)
    (tmp_path / "site-packages").mkdir()
    topic = "A topic of the reference manual with more than eight words. " * 5
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"# made by a tool\ntopics = {{'b': {topic!r}}}\n")
    (tmp_path / "pkg" / "__init__.py").write_text('def f():\n    """Do a good thing."""\nraise SystemExit("executed")')
    (tmp_path / "pkg" / "test" / "test_f.py").write_text('def t():\n    """Test a good thing."""')
    (tmp_path / "pkg" / "py2.py").write_text("print 'hello'")
    (tmp_path / "pkg" / "latin.py").write_bytes("# caf\xe9".encode("latin1"))
    (tmp_path / "site-packages" / "x.py").write_text('def x():\n    """Do a bad thing."""')
    extracted = embedded.extract(tmp_path, embedded.source_files(tmp_path))
    assert json.loads(json.dumps(extracted)) == {
        "pairs": [["def pkg.f():", "Do a good thing.", "pkg.f"]],
        "documents": [[topic.strip(), "topic b"]],
    }
    with pytest.raises(UserError, match="no Python sources there"):
        embedded.source_files(tmp_path / "site-packages" / "none")


def test_digits():
    images, labels = digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert images.min() == 0 and images.max() == 255 and len(np.unique(images)) == 17
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # UCI's class counts
    assert images[0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16
