"""`alignkit evaluate safety-prompts`: one labelled prompt file from the public sets, with disguises of the unsafe ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from evaluation.options import SCHEMA_VERSION
from launch.config import artefact
from launch.entry import run_module
from launch.ranges import PositiveInt
from launch.stage import LazyRun, Stage, StageConfig

SETS = ("xstest", "harmbench", "advbench", "strongreject", "malicious_instruct")


@dataclass(kw_only=True)
class SafetyPromptsConfig(StageConfig):
    """Prompts of public sets in one file that `alignkit generate` and `alignkit evaluate safety --prompts` read."""

    xstest: str = artefact("")
    """XSTest's prompts, safe and unsafe: a file or hub:..."""
    harmbench: str = artefact("")
    """HarmBench's behaviours."""
    advbench: str = artefact("")
    """AdvBench's behaviours."""
    strongreject: str = artefact("")
    """StrongREJECT's prompts."""
    malicious_instruct: str = artefact("")
    """MaliciousInstruct's prompts."""
    templates: list[str] = field(default_factory=lambda: ["direct"])
    """Disguises of the unsafe prompts: `direct` (as it is; the only one unless given), names of templates, or `all`."""
    template_file: str = artefact("")
    """Your own templates, a JSON file of the form of alignkit's evaluation/safety/files/jailbreak_templates.json."""
    max_per_set: PositiveInt | None = None
    """Use only so many prompts of each set, the first by a hash of their text."""

    def check(self) -> None:
        """At least one set."""
        if not self.sources():
            raise ValueError(f"no set is given; add one of --{', --'.join(SETS)}")

    def sources(self) -> dict[str, str]:
        """set -> source of those that are given."""
        return {name: getattr(self, name) for name in SETS if getattr(self, name)}


STAGE = Stage(
    "evaluate safety-prompts",
    SafetyPromptsConfig,
    LazyRun("evaluation.suites.safety_prompts_run"),
    version=SCHEMA_VERSION,
)

if __name__ == "__main__":
    run_module("evaluation.suites.safety_prompts")
