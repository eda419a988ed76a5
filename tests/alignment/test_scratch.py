"""Memory that is used again."""

import torch

from alignment.scratch import Scratch


def test_memory_is_taken_again_by_name_and_type():
    scratch = Scratch(torch.device("cpu"))
    first = scratch.take("a", (4, 6), torch.float32)
    again = scratch.take("a", (3, 5), torch.float32)
    assert again.data_ptr() == first.data_ptr() and again.shape == (3, 5) and again.is_contiguous()
    others = [scratch.take("b", (4, 6), torch.float32), scratch.take("a", (4, 6), torch.bfloat16)]
    assert len({first.data_ptr(), *(other.data_ptr() for other in others)}) == 3
    assert others[1].dtype == torch.bfloat16


def test_it_grows_when_more_is_asked_for():
    scratch = Scratch(torch.device("cpu"))
    scratch.take("a", (2,), torch.float32)
    large = scratch.take("a", (3, 3), torch.float32)
    large.fill_(1)
    assert scratch.take("a", (9,), torch.float32).sum() == 9
