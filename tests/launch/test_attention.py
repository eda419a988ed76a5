"""Short rows in bf16 on a CPU attend in float32, whatever the pass; all else is PyTorch's own."""

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoTokenizer

from evaluation.loading import read_causal
from launch import attention
from tests.support import save_policy


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_policy(tmp_path_factory.mktemp("attention") / "policy")
    return read_causal("model", str(folder), AutoTokenizer.from_pretrained(folder))


@pytest.fixture
def types(monkeypatch):
    """The types in which PyTorch's attention computes."""
    seen = []

    def spy(query, key, value, **named):
        seen.append(torch.bfloat16 if torch.is_autocast_enabled("cpu") else query.dtype)
        return scaled_dot_product_attention(query, key, value, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return seen


def logits(model, length, bf16=True, **named):
    ids = torch.arange(2 * length).reshape(2, length) % 20 + 3
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model(ids, **named).logits


def test_by_length_and_type_alone(model, types, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST", 12)
    logits(model, 12).float().sum().backward()
    with torch.no_grad():
        logits(model, 12)
    assert set(types) == {torch.float32}
    types.clear()
    logits(model, 13)
    assert set(types) == {torch.bfloat16}
    types.clear()
    logits(model, 13, bf16=False)
    assert set(types) == {torch.float32}


@pytest.mark.parametrize("mask", [None, torch.tensor([[0] * 3 + [1] * 9, [1] * 12])])
def test_it_is_as_exact_as_the_attention_in_bf16(model, types, mask, monkeypatch):
    exact = logits(model, 12, bf16=False, attention_mask=mask)
    found = logits(model, 12, attention_mask=mask)
    assert set(types) == {torch.float32}
    monkeypatch.setattr(attention, "LONGEST", 0)
    plain = logits(model, 12, attention_mask=mask)
    assert types[-1] == torch.bfloat16
    errors = [(x - exact)[:, 3:].float().square().mean().sqrt() for x in (found, plain)]
    assert 0 < errors[0] < 1.2 * errors[1] < 0.1 * exact.square().mean().sqrt()


def test_gradients_reach_all_weights(model, tmp_path):
    model.zero_grad()
    logits(model, 12).float().square().mean().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits(model, 12, bf16=False).square().mean().backward()
    for name, p in model.named_parameters():
        assert (ours[name] - p.grad).norm() < 0.1 * p.grad.norm() + 1e-4, name


def test_a_floating_mask(model):
    added = torch.zeros(2, 1, 12, 12, dtype=torch.bfloat16).masked_fill(~torch.ones(12, 12).tril().bool(), -1e9)
    torch.testing.assert_close(logits(model, 12, attention_mask=added), logits(model, 12), atol=0.05, rtol=0.05)


def test_weights_in_bf16_without_autocast(model, types):
    narrow = copy.deepcopy(model).bfloat16()
    exact = logits(model, 12, bf16=False)
    found = logits(narrow, 12, bf16=False)
    assert found.dtype == torch.bfloat16 and set(types) == {torch.float32}
    assert (found - exact).square().mean() < 0.01 * exact.square().mean()
