import pytest


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    """Local tasks of lm-eval, one of each kind; what `datasets` makes of their data stays with them."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `tasks`)")
    import datasets

    from tests.evaluation.language.harness_tasks import write_tasks

    root = tmp_path_factory.mktemp("tasks")
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = root / "cache"
    yield write_tasks(root / "yaml")
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture
def only_local(monkeypatch):
    """lm-eval's own index of 15,000 files is left out, which takes seconds to read."""
    from lm_eval import tasks

    manager = tasks.TaskManager
    monkeypatch.setattr(
        tasks,
        "TaskManager",
        lambda include_path=None, include_defaults=True: manager(include_path=include_path, include_defaults=False),
    )
