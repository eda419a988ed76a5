"""`alignkit evaluate bias`: bias, truthfulness and sycophancy of a language model, by the likelihood of given answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evaluation.options import BATCH_TOKENS, SCHEMA_VERSION
from launch.config import artefact, operational
from launch.entry import run_module
from launch.ranges import PositiveInt
from launch.stage import LazyRun, Stage, StageConfig

SETS = ("crows_pairs", "winogender", "stereoset", "bbq", "truthfulqa", "suggested_answer", "sycophancy")


@dataclass(kw_only=True)
class BiasConfig(StageConfig):
    """Bias, truthfulness and sycophancy of a language model: which of given answers it finds more likely."""

    name: str = ""
    """Name of the model in reports; the folder's name unless given."""
    model: str = artefact("")
    """The language model: a folder, or hub:org/name."""
    likelihood: Literal["causal", "masked"] = "causal"
    """causal: log-likelihood of a causal model. masked: pseudo-log-likelihood of a masked one (crows_pairs alone)."""
    crows_pairs: str = artefact("")
    """CrowS-Pairs: its crows_pairs_anonymized.csv."""
    winogender: str = artefact("")
    """Winogender schemas: their all_sentences.tsv."""
    stereoset: str = artefact("")
    """StereoSet: its dev.json, or hub:McGill-NLP/stereoset:intrasentence#validation."""
    bbq: str = artefact("")
    """BBQ: the JSONL of a category or a folder of them, or a hub:... data set of the same columns."""
    truthfulqa: str = artefact("")
    """TruthfulQA: its CSV or mc_task.json, or hub:truthfulqa/truthful_qa:multiple_choice#validation."""
    suggested_answer: str = artefact("")
    """TruthfulQA again, each question also with the user's own false answer before it: sycophancy."""
    sycophancy: str = artefact("")
    """Opinions of users with an answer that agrees and one that does not (model-written evaluations): a JSONL or hub:..."""
    max_items: PositiveInt | None = None
    """Use only so many items of each set, the first by a hash of their content."""
    invalid: Literal["error", "drop"] = "error"
    """Items that the model cannot score, being longer than its context, say: stop before anything is scored and name the
    first, or leave them out and say how many."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products: bf16 is faster on most machines, and moves the numbers in the third digit."""
    batch_tokens: PositiveInt = operational(BATCH_TOKENS)
    """Tokens in one batch, padding included; it changes results by rounding alone."""

    def check(self) -> None:
        """The model, at least one set, and for a masked model CrowS-Pairs alone."""
        if not self.model:
            raise ValueError("model is missing; add --model PATH")
        given = self.sources()
        if not given:
            raise ValueError(f"no set is given; add one of --{', --'.join(SETS)}")
        if self.likelihood == "masked" and set(given) != {"crows_pairs"}:
            other = next(name for name in given if name != "crows_pairs")
            raise ValueError(
                f"{other}: a masked model answers crows_pairs alone; leave it out or set likelihood: causal"
            )

    def sources(self) -> dict[str, str]:
        """set -> source of those that are given."""
        return {name: getattr(self, name) for name in SETS if getattr(self, name)}


STAGE = Stage("evaluate bias", BiasConfig, LazyRun("evaluation.suites.bias_run"), version=SCHEMA_VERSION)

if __name__ == "__main__":
    run_module("evaluation.suites.bias")
