"""Text out of Python source: pairs (signature, summary line) and the English prose around them.

Sources are parsed, never imported. Everything here is a function of source texts, so the same sources give the same
records on every machine.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from data.records import Document, Pair, normalise, plain_text, words

MIN_WORDS, MAX_WORDS = 3, 25
MAX_PROMPT = 160  # characters: a longer signature fills a small model's context before the summary starts
LEAK_WORDS = 5  # a summary of at least so many words must not occur in the prose; shorter ones are common phrases
MIN_DOCUMENT = 200  # characters: a shorter rest of a module's prose is no document

_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bcf)[.!?][\"')\]]*(?=\s+(?:[\"'(\[*]*[A-Z]|`))")
_CODE = re.compile(r"[{}<>|\\=@#~^]|::|\.\.\.")
_CODE_MARK = re.compile(r"[={}<>|\\#_]")
_LETTERS = re.compile(r"[A-Za-z]")


class Definition(NamedTuple):
    """A documented function, method or class: its signature as a prompt, and its docstring with indentation removed."""

    name: str
    prompt: str
    docstring: str


def definitions(tree: ast.Module, module: str) -> Iterator[Definition]:
    """The documented definitions of a module, in source order; those inside functions are left out."""
    stack: list[tuple[ast.AST, str]] = [(tree, module)]
    while stack:
        node, prefix = stack.pop()
        inner: list[tuple[ast.AST, str]] = []
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{prefix}.{child.name}"
                docstring = ast.get_docstring(child)
                if docstring:
                    yield Definition(name, signature(child, name), docstring)
                if isinstance(child, ast.ClassDef):
                    inner.append((child, name))
            elif isinstance(child, (ast.If, ast.Try, ast.With)):
                inner.append((child, prefix))
        stack.extend(reversed(inner))


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, name: str) -> str:
    """`def shlex.split(s, comments=False, posix=True):` or `class json.JSONDecoder(object):`, on one line."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in [*node.bases, *node.keywords])
        return f"class {name}({bases}):" if bases else f"class {name}:"
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {name}({ast.unparse(node.args)}){returns}:"


def summary(docstring: str) -> str | None:
    """The first sentence of a docstring if it reads as English prose of 3 to 25 words, else None.

    A final full stop is added and a lower-case first word capitalised (PEP 257), so that all end and start alike.
    """
    paragraph = " ".join(_BLANK_LINE.split(docstring.strip(), maxsplit=1)[0].split())
    end = _SENTENCE_END.search(paragraph)
    sentence = paragraph[: end.end()] if end else paragraph
    first, *rest = sentence.split(" ")
    count = len(rest) + 1
    if not MIN_WORDS <= count <= MAX_WORDS or not sentence.isascii() or _CODE.search(sentence):
        return None
    if not first[0].isalpha() or "(" in first or "_" in first or sentence.endswith((":", ",", ";", "-")):
        return None
    if not _is_prose(sentence):
        return None
    if first.isalpha() and first.islower():
        sentence = sentence[0].upper() + sentence[1:]
    return sentence if sentence.endswith((".", "!", "?", '."', ".)", ".'")) else f"{sentence}."


def _is_prose(text: str) -> bool:
    """At least three quarters of the characters, spaces left out, are letters."""
    dense = text.replace(" ", "")
    return 4 * len(_LETTERS.findall(dense)) >= 3 * len(dense)


def pairs(found: Iterable[Definition]) -> list[Pair]:
    """(signature, summary) pairs, the first of each signature and of each summary.

    Overridden methods share their summary. Were all kept, a split by prompt would have it on both sides.
    """
    kept: list[Pair] = []
    prompts: set[str] = set()
    summaries: set[str] = set()
    for name, prompt, docstring in found:
        line = summary(docstring)
        if line is None or len(prompt) > MAX_PROMPT or not prompt.isascii():
            continue
        if normalise(prompt) not in prompts and normalise(line) not in summaries:
            kept.append(Pair(prompt, line, name))
            prompts.add(normalise(prompt))
            summaries.add(normalise(line))
    return kept


# ---------------------------------------------------------------------------------------------- prose


def parse(source: str) -> ast.Module | None:
    """The syntax tree, or None for a file of another language version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return None


def comments(source: str) -> Iterator[str]:
    """Blocks of comment lines, the marks taken off."""
    block: list[str] = []
    for line in [*source.split("\n"), ""]:
        bare = line.strip()
        if bare.startswith("#"):
            block.append(bare.lstrip("#").strip())
        elif block:
            yield "\n".join(block)
            block = []


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a text that read as prose, each on one line: at least eight words, no code, no tables."""
    for part in _BLANK_LINE.split(inspect.cleandoc(text)):
        line = " ".join(part.split())
        code = 50 * len(_CODE_MARK.findall(line)) > len(line)  # more than 2 % of the characters
        if len(line.split(" ")) >= 8 and not code and ">>>" not in line and line.isascii() and _is_prose(line):
            yield line


def leak_check(completions: Iterable[str]) -> Callable[[str], bool]:
    """A function that tells whether a text contains one of the completions, word for word.

    Completions of fewer than LEAK_WORDS words ("Return a copy.") are everyday phrases and not looked for.
    """
    by_start: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for completion in completions:
        phrase = tuple(words(completion))
        if len(phrase) >= LEAK_WORDS:
            by_start.setdefault(phrase[:LEAK_WORDS], set()).add(phrase)

    def leaks(text: str) -> bool:
        spoken = tuple(words(text))
        for at in range(len(spoken) - LEAK_WORDS + 1):
            for phrase in by_start.get(spoken[at : at + LEAK_WORDS], ()):
                if spoken[at : at + len(phrase)] == phrase:
                    return True
        return False

    return leaks


class Module(NamedTuple):
    """What a module contributes: its documented definitions, and its other texts in order."""

    name: str
    definitions: list[Definition]
    texts: list[str]


def read_module(name: str, source: str, with_definitions: bool) -> Module:
    """The definitions, module docstring and comments of a source; only the comments when it is not to be parsed."""
    tree = parse(source) if with_definitions else None
    if tree is None:
        return Module(name, [], list(comments(source)))
    return Module(name, list(definitions(tree, name)), [ast.get_docstring(tree) or "", *comments(source)])


def prose(modules: Iterable[Module], topics: dict[str, str], taken: Iterable[Pair]) -> list[Document]:
    """One document for each topic and module: the paragraphs that read as English prose, each once.

    The paragraphs of the docstrings of the pairs in `taken` are left out wherever they occur, and so is every
    paragraph that contains one of their summaries. So however pairs are split later, no held-out docstring was in
    this text.
    """
    modules = list(modules)
    completions = {normalise(plain_text(pair.completion)) for pair in taken}
    leaks = leak_check(completions)
    paired = [
        d for module in modules for d in module.definitions if normalise(summary(d.docstring) or "") in completions
    ]
    seen = {normalise(paragraph) for d in paired for paragraph in paragraphs(d.docstring)}

    def fresh(text: str) -> Iterator[str]:
        for paragraph in paragraphs(text):
            key = normalise(paragraph)
            if key not in seen and not leaks(paragraph):
                seen.add(key)
                yield paragraph

    texts = [(f"topic {name}", [text]) for name, text in topics.items()]
    texts += [(module.name, [*module.texts, *(d.docstring for d in module.definitions)]) for module in modules]
    found = (Document("\n\n".join(p for part in parts for p in fresh(part)), name) for name, parts in texts)
    return [document for document in found if len(document.text) >= MIN_DOCUMENT]
