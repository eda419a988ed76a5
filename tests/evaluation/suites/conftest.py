import json

import pytest

from evaluation.schema import load
from launch.config import build
from launch.stage import run_stage
from tests.evaluation import tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of tiny models with their tokenizer: policy, reference, judge, proxy."""
    root = tmp_path_factory.mktemp("models")
    made = {"policy": tiny.language_model(0), "reference": tiny.language_model(1)}
    made |= {"judge": tiny.reward_model(2), "proxy": tiny.reward_model(3)}
    for name, model in made.items():
        model.save_pretrained(root / name)
        tiny.tokenizer().save_pretrained(root / name)
    return root


def run_suite(stage, folder, part="", **values):
    """Run a suite and load its result, or that of one part, which has a folder of its own."""
    run_stage(
        stage,
        build(
            stage.config,
            {
                "output_dir": str(folder),
                **{k: v if isinstance(v, (int, bool, float, dict)) else str(v) for k, v in values.items()},
            },
            "test",
        ),
    )
    return load(folder / part)


def read_rows(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
