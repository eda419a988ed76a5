"""The stage `sample`: a model folder in, images out. See docs/generative.md."""

from generative.sample.config import SampleConfig
from launch.stage import Stage, run_of

STAGE = Stage("sample", SampleConfig, run_of("generative.sample.stage"))
__all__ = ["STAGE", "SampleConfig"]
