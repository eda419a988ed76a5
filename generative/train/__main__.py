"""`python -m generative.train`, and the same under `accelerate launch -m`."""

from launch.entry import run_module

if __name__ == "__main__":
    run_module("generative.train")
