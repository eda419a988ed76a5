"""`alignkit evaluate text`: perplexity on held-out text, lm-evaluation-harness's tasks, and the quality of completions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.sources import TextSplit
from evaluation.options import BATCH_TOKENS, SCHEMA_VERSION
from launch.config import artefact, operational
from launch.entry import run_module
from launch.ranges import Count, PositiveInt
from launch.stage import LazyRun, Stage, StageConfig


@dataclass(kw_only=True)
class TextConfig(StageConfig):
    """Perplexity of a language model on held-out text, its scores on lm-eval's tasks, and the quality of its completions."""

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
    tasks: list[str] = field(default_factory=list)
    """Tasks and groups of lm-evaluation-harness (needs `pip install 'alignkit[tasks]'`)."""
    include_path: str = artefact("")
    """Folder with YAML files of tasks of your own, and best with their data."""
    num_fewshot: Count | None = None
    """Examples in each prompt of the tasks; what the task says unless given."""
    max_items: PositiveInt | None = None
    """Use only the first so many documents of each task."""
    completions: str = artefact("")
    """Completions of the model (file or folder of `alignkit generate`), to measure length, diversity and repetition."""
    features: str = artefact("")
    """A language model whose hidden states compare the completions with their references, by MAUVE."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products: bf16 is faster on most machines, and moves the numbers in the third digit."""
    batch_tokens: PositiveInt = operational(BATCH_TOKENS)
    """Tokens in one batch, padding included; it changes results by rounding alone."""

    def check(self) -> None:
        """The model and at least one thing to measure it on."""
        if not self.model:
            raise ValueError("model is missing; add --model PATH")
        if not self.documents and not self.completions and not self.tasks:
            raise ValueError(
                "documents is missing; add --documents SOURCE for perplexity, --tasks NAMES, or --completions FILE"
            )
        if self.features and not self.completions:
            raise ValueError("features is for the completions, and none are given; add --completions FILE")
        for name in ("include_path", "num_fewshot", "max_items"):
            if getattr(self, name) not in ("", None) and not self.tasks:
                raise ValueError(f"{name} is for tasks, and none are given; add --tasks NAMES")


STAGE = Stage("evaluate text", TextConfig, LazyRun("evaluation.suites.text_run"), version=SCHEMA_VERSION)

if __name__ == "__main__":
    run_module("evaluation.suites.text")
