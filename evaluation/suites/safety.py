"""`alignkit evaluate safety`: safety rates of completions, offline. No offensive text is printed or stored."""

from __future__ import annotations

from dataclasses import dataclass

from data.sources import TextSplit
from evaluation.safety.memorisation import Unit
from launch.config import artefact
from launch.entry import run_module
from launch.ranges import PositiveInt
from launch.stage import Stage, StageConfig, run_of


@dataclass(kw_only=True)
class SafetyConfig(StageConfig):
    """Safety rates of completions: degenerate output, personal data, copied training text, lexicon terms, refusals."""

    name: str = ""
    """Name of the model in reports; the folder's name unless given."""
    completions: str = artefact("")
    """The completions: a file or folder of `alignkit generate`."""
    training_documents: list[str] = artefact([])
    """Sources that the model was trained on, documents or pairs (whose completions count); completions are searched for copies."""
    text_field: str = "text"
    """The column of tables that holds the training text."""
    split_text: TextSplit = "file"
    """What one document of a text file is; see `alignkit evaluate text`."""
    copied_length: PositiveInt = 50
    """A copy is a span of so many units in a row; customary are 50 characters or 13 words."""
    copied_unit: Unit = "characters"
    """Unit of copied_length: characters or words."""
    lexicon: str = artefact("")
    """A word list, one term on each line; none comes with alignkit."""
    prompts: str = artefact("")
    """A file of prompts labelled safe or unsafe (XSTest, AdvBench and the like) that the completions answer."""
    refusal_labels: str = artefact("")
    """Completions that people labelled as refusals or answers, to measure the refusal detector and correct its rates."""

    def check(self) -> None:
        """Completions, and labels only where refusals are counted."""
        if not self.completions:
            raise ValueError("completions is missing; add --completions PATH")
        if self.refusal_labels and not self.prompts:
            raise ValueError("refusal_labels: refusals are counted on labelled prompts alone; add --prompts PATH")


STAGE = Stage("evaluate safety", SafetyConfig, run_of("evaluation.suites.safety_run"))

if __name__ == "__main__":
    run_module("evaluation.suites.safety")
