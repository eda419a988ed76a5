"""The stage `sample`: a model folder in, images out. See docs/generative.md."""

from generative.sample.stage import STAGE, SampleConfig

__all__ = ["STAGE", "SampleConfig"]
