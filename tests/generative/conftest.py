import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Sums over threads round differently, and these nets are too small for more."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that the runtime leaves the number alone
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
