"""What the stages that train on preferences share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alignment.trl_stage.config import TrainerConfig, hold_out
from data import Preference, find_contamination, load_preferences, plain_text
from launch.ranges import ShareBelowOne
from launch.stage import Job


@dataclass(kw_only=True)
class PreferenceConfig(TrainerConfig):
    """Training on preference pairs."""

    eval_fraction: ShareBelowOne = 0.1
    """Share of the prompts of `::train` that is held out, by content, besides all of `::eval`; 0 holds out nothing."""
    invalid: Literal["error", "drop"] = "error"
    """What to do with faulty rows (an empty answer, chosen equal to rejected): stop and name the first, or leave them out."""


def load_preference_split(config: PreferenceConfig) -> tuple[list[Preference], list[Preference]]:
    """Training and held-out preferences: as the config names them, or by `hold_out`."""
    preferences = load_preferences(config.data, config.invalid)
    if config.eval_data:
        return preferences, load_preferences(config.eval_data, config.invalid)
    return hold_out(preferences, config)


def contaminated(train: Sequence[Preference], heldout: Sequence[Preference]) -> int:
    """How many held-out pairs training has seen: the prompt is a training prompt, or 13 words in a row are the same.

    A hash of the prompt keeps equal prompts apart, but neither near copies of a prompt nor answers that are shared.
    """
    prompts = find_contamination(*([plain_text(p.prompt) for p in part] for part in (train, heldout)))
    whole = find_contamination(*([_whole_text(p) for p in part] for part in (train, heldout)))
    return len({hit.evaluation for hit in [*prompts, *whole]})


def _whole_text(preference: Preference) -> str:
    return "\n".join(plain_text(turns) for turns in (preference.prompt, preference.chosen, preference.rejected))


def count_contaminated(job: Job, train: Sequence[Preference], heldout: Sequence[Preference]) -> dict[str, int]:
    """`contaminated` for the summary, said aloud when there is any. One rank looks: on 160,000 pairs it takes a minute."""
    found = job.runtime.broadcast(contaminated(train, heldout) if job.runtime.is_main else 0)
    if found:
        job.say(f"{found} of {len(heldout)} held-out pairs share a prompt or 13 words in a row with training pairs")
    return {"eval_contaminated": found}
