"""`alignkit evaluate safety`: safety rates of completions, offline. No offensive text is printed or stored."""

from __future__ import annotations

from dataclasses import dataclass

from data.sources import TextSplit
from evaluation.options import SCHEMA_VERSION
from evaluation.safety.memorisation import Unit
from launch.config import artefact
from launch.entry import run_module
from launch.ranges import PositiveInt
from launch.stage import LazyRun, Stage, StageConfig


@dataclass(kw_only=True)
class SafetyConfig(StageConfig):
    """Safety rates of completions: degenerate output, personal data, copied training text, toxicity, lexicon terms, refusals."""

    name: str = ""
    """Name of the model in reports; the folder's name unless given."""
    completions: str = artefact("")
    """The completions: a file or folder of `alignkit generate`."""
    baseline: str = artefact("")
    """Completions of another model on the same prompts (the model before alignment, say): every rate gets its paired difference."""
    baseline_name: str = ""
    """Name of the baseline in reports; the folder's name unless given."""
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
    near_copied_words: PositiveInt = 30
    """A near copy is a span of so many words that stands in the training text but for an edit in each ten of them."""
    toxicity: bool = False
    """Score the toxicity of completions, with the scorer that comes with alignkit unless a classifier is named."""
    toxicity_classifier: str = artefact("")
    """A Hugging Face sequence classifier to score toxicity with, a folder or hub:org/name."""
    lexicon: str = artefact("")
    """A word list, one term on each line; none comes with alignkit."""
    prompts: str = artefact("")
    """Prompts labelled safe or unsafe (XSTest, or a file of `alignkit evaluate safety-prompts`) that the completions answer."""
    refusal_labels: str = artefact("")
    """Completions that people labelled as refusals or answers, to measure the refusal detector and correct its rates."""

    def check(self) -> None:
        """Completions, and labels only where refusals are counted."""
        if not self.completions:
            raise ValueError("completions is missing; add --completions PATH")
        if self.refusal_labels and not self.prompts:
            raise ValueError("refusal_labels: refusals are counted on labelled prompts alone; add --prompts PATH")


STAGE = Stage("evaluate safety", SafetyConfig, LazyRun("evaluation.suites.safety_run"), version=SCHEMA_VERSION)

if __name__ == "__main__":
    run_module("evaluation.suites.safety")
