"""`alignkit evaluate text`: perplexity of a language model on held-out text, and the quality of its completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.sources import TextSplit
from evaluation.options import BATCH_TOKENS
from launch.config import artefact, operational
from launch.entry import run_module
from launch.ranges import PositiveInt
from launch.stage import Stage, StageConfig, run_of


@dataclass(kw_only=True)
class TextConfig(StageConfig):
    """Perplexity and bits per byte of a language model on held-out text; quality of its completions."""

    name: str = ""
    """Name of the model in reports; the folder's name unless given."""
    model: str = artefact("")
    """The language model: a folder, or hub:org/name."""
    documents: str = artefact("")
    """Held-out text: a file, a folder, embedded:python-prose or hub:...; `::eval` picks
    the split that `::train`, and every stage that holds something out, leaves alone."""
    text_field: str = "text"
    """The column of tables that holds the text."""
    split_text: TextSplit = "file"
    """What one document of a text file is: the file, a paragraph (blank-line), or the text between <|endoftext|> marks."""
    max_documents: PositiveInt | None = None
    """Use only so many documents, the first by content hash."""
    context: PositiveInt | None = None
    """Tokens that a window reads, at most; the model's longest context unless given."""
    stride: PositiveInt | None = None
    """New tokens of each further window; half the context unless given."""
    completions: str = artefact("")
    """Completions of the model (file or folder of `alignkit generate`), to measure length, diversity and repetition."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products: bf16 is faster on most machines, and moves the numbers in the third digit."""
    batch_tokens: PositiveInt = operational(BATCH_TOKENS)
    """Tokens in one batch, padding included; it changes results by rounding alone."""

    def check(self) -> None:
        """The model and at least one thing to measure it on."""
        if not self.model:
            raise ValueError("model is missing; add --model PATH")
        if not self.documents and not self.completions:
            raise ValueError("documents is missing; add --documents SOURCE for perplexity, or --completions FILE")


STAGE = Stage("evaluate text", TextConfig, run_of("evaluation.suites.text_run"))

if __name__ == "__main__":
    run_module("evaluation.suites.text")
