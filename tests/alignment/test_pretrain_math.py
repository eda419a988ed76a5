"""Pretraining's pure parts: the size dial, the schedule, Muon, throughput."""

import math

import pytest
import torch
from torch import nn

from alignment.pretrain import dial, muon
from alignment.pretrain.config import PretrainConfig, parse_heldout
from alignment.pretrain.model import build_model, count_parameters
from alignment.pretrain.muon import MuonAdamW, orthogonalise, update_scale
from alignment.pretrain.plan import choose_optimizer, derive_plan, plan_shape
from alignment.pretrain.schedule import wsd_factor
from alignment.pretrain.throughput import model_flops_utilisation, peak_flops
from launch.config import build
from launch.errors import UserError
from tests.support import word_tokenizer

# ---------------------------------------------------------------------------------------------- dial


def test_formulas_are_exact_at_the_reference_point():
    assert dial.batch_tokens(dial.REFERENCE_TOKENS) == dial.REFERENCE_BATCH
    assert dial.muon_lr(dial.REFERENCE_BATCH) == dial.REFERENCE_MUON_LR
    assert dial.adamw_lr(3e-3, dial.REFERENCE_WIDTH, dial.REFERENCE_BATCH) == 3e-3


def test_formulas_scale_as_their_papers_say():
    assert dial.batch_tokens(1024 * dial.REFERENCE_TOKENS) == pytest.approx(dial.REFERENCE_BATCH * 2**3.83)
    assert dial.muon_lr(4 * dial.REFERENCE_BATCH) == pytest.approx(2 * dial.REFERENCE_MUON_LR)
    quarter = dial.adamw_lr(1.0, 4 * dial.REFERENCE_WIDTH, dial.REFERENCE_BATCH)
    assert quarter == pytest.approx(0.5)
    assert dial.token_budget(1000) == 20_000
    assert (dial.model_width(12), dial.head_count(768), dial.mlp_width(768)) == (768, 12, 2048)
    assert (dial.head_count(48), dial.mlp_width(128)) == (1, 344)


def test_shape_counts_the_parameters_that_the_model_has():
    shape = dial.Shape(layers=3, width=32, heads=2, mlp_width=88, vocab_size=23, context=16)
    model = build_model(shape, 100.0, word_tokenizer(), seed=0)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    assert shape.product_parameters == matrices
    norms = 3 * (2 * 32 + 2 * 16) + 32
    assert count_parameters(model, used_vocabulary=20) == {
        "parameters": matrices + 23 * 32 + norms,
        "parameters_used": matrices + 23 * 32 + norms - 2 * 3 * 32,
    }


def test_flops_per_token_by_hand():
    shape = dial.Shape(layers=2, width=8, heads=1, mlp_width=24, vocab_size=10, context=16)
    # N = 2 (4 x 64 + 3 x 8 x 24) + 80 = 1744
    assert dial.flops_per_token(shape) == 6 * 1744 + 12 * 2 * 8 * 16


def config(**values):
    return build(PretrainConfig, {"output_dir": "unused", **values}, "test")


def test_every_derived_value_can_be_overridden():
    plan = derive_plan(config(depth=2, context=64, tokens=10_000, batch_tokens=640), vocab_size=500)
    assert (plan.shape.width, plan.shape.heads, plan.batch_rows, plan.steps, plan.tokens) == (128, 2, 10, 16, 10_240)
    assert (plan.warmup_steps, plan.decay_steps) == (0, 10)
    given = config(depth=2, width=96, heads=3, mlp_width=40, learning_rate=0.1, matrix_learning_rate=0.2, tokens=9999)
    plan = derive_plan(given, vocab_size=500)
    assert (plan.shape.width, plan.shape.heads, plan.shape.mlp_width) == (96, 3, 40)
    assert (plan.learning_rate, plan.matrix_learning_rate) == (0.1, 0.2)


def test_plan_without_overrides_follows_the_formulas():
    plan = derive_plan(config(depth=4, vocab_size=512), vocab_size=512)
    parameters = 4 * (4 * 256**2 + 3 * 256 * 688) + 512 * 256
    assert plan.shape.product_parameters == parameters
    assert plan.batch_rows % 8 == 0
    eight_rows = 8 * config().context
    assert plan.batch_tokens > eight_rows and plan.batch_tokens % eight_rows == 0
    assert abs(plan.batch_tokens - dial.batch_tokens(20 * parameters)) <= eight_rows / 2  # the nearest multiple
    assert plan.tokens % plan.batch_tokens == 0 and abs(plan.tokens - 20 * parameters) <= plan.batch_tokens / 2
    assert plan.matrix_learning_rate == dial.muon_lr(plan.batch_tokens)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 0}, "depth: 0 is below 1"),
        ({"context": -1}, "context: -1"),
        ({"tokens": 0}, "tokens: 0"),
        ({"heldout": "first:0.1"}, "heldout: 'first:0.1'"),
        ({"heldout": "hash:1.5"}, "heldout: 'hash:1.5'"),
        ({"decay": 1.5}, "decay: 1.5"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1"),
        ({"learning_rate": "abc"}, "learning_rate: 'abc' is not a number"),
        ({"optimizer": "muno"}, "did you mean 'muon'"),
    ],
)
def test_values_that_cannot_work_are_named(values, message):
    with pytest.raises(UserError, match=message):
        config(**values)


def test_plans_that_cannot_work_are_named():
    with pytest.raises(UserError, match="do not fill one batch of 1024"):
        derive_plan(config(tokens=100, batch_tokens=1024), vocab_size=300)
    with pytest.raises(UserError, match="width, heads: 30 over 2 heads"):
        plan_shape(config(width=30, heads=2), vocab_size=300)


def test_muon_is_refused_under_zero_and_auto_gives_way():
    assert [choose_optimizer("auto", stage) for stage in (0, 1, 2, 3)] == ["muon", "adamw", "adamw", "adamw"]
    assert choose_optimizer("adamw", 0) == "adamw"
    with pytest.raises(UserError, match=r"optimizer: muon needs whole matrices.*ZeRO-3"):
        choose_optimizer("muon", 3)


def test_heldout_forms():
    assert parse_heldout("hash:0.05") == ("hash", 0.05)
    assert parse_heldout("last:0.1") == ("last", 0.1)


# ---------------------------------------------------------------------------------------------- schedule


def test_warmup_stable_decay_values():
    factors = [wsd_factor(step, steps=10, warmup=3, decay=4) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    root = [wsd_factor(step, steps=10, warmup=0, decay=4, shape="sqrt") for step in range(6, 10)]
    assert root == pytest.approx([1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)])


def test_schedule_without_decay_and_with_overlap():
    assert [wsd_factor(step, 4, 0, 0) for step in range(4)] == [1, 1, 1, 1]
    assert [wsd_factor(step, 4, 1, 4) for step in range(4)] == pytest.approx([0.5, 0.75, 0.5, 0.25])


# ---------------------------------------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(6, 24, 16), (6, 16, 24), (2, 16, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.max() < 1.28
    assert values.median() > 0.7
    # the singular vectors are kept: U^T O V is diagonal
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalise(matrices) @ vh.mT
    off_diagonal = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-3


def test_the_quintics_keep_singular_values_in_their_band():
    values = torch.logspace(-2, 0, 1000, dtype=torch.float64)
    for a, b, c in muon.POLAR_EXPRESS:
        values = a * values + b * values**3 + c * values**5
    assert values.min() == pytest.approx(0.70, abs=0.005)
    assert values.max() == pytest.approx(1.27, abs=0.005)


def test_each_matrix_of_a_stack_is_orthogonalised_alone():
    matrices = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(1))
    alone = torch.stack([orthogonalise(m[None])[0] for m in matrices])
    assert torch.allclose(orthogonalise(matrices), alone, atol=1e-6)


def _parameters(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(24, 16), (16, 16), (24, 16), (16, 24), (5,)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _train(parameters, optimizers, steps=5, first=0):
    """Steps on random gradients, different in each step, so that momentum and look-ahead matter."""
    for step in range(first, first + steps):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
        for optimizer in optimizers:
            optimizer.step()


def test_muon_agrees_with_torch_muon_up_to_its_bfloat16(monkeypatch):
    """With torch's quintic, five times, in place of our three."""
    monkeypatch.setattr(muon, "POLAR_EXPRESS", 5 * ((3.4445, -4.7750, 2.0315),))
    ours, theirs = _parameters(0)[:4], _parameters(0)[:4]
    _train(ours, [MuonAdamW([{"params": ours, "algorithm": "muon", "lr": 0.02, "weight_decay": 0.1}])])
    _train(theirs, [torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)])
    start = _parameters(0)[:4]
    for mine, reference, before in zip(ours, theirs, start, strict=True):
        moved = (reference - before).norm()
        assert (mine - reference).norm() < 0.03 * moved
        assert moved > 0.1


def test_the_adamw_groups_are_torch_adamw_to_the_bit():
    ours, theirs = _parameters(0), _parameters(0)
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1}
    _train(ours, [MuonAdamW([{"params": ours, **settings}])])
    _train(theirs, [torch.optim.AdamW(theirs, fused=True, **settings)])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_state_dict_resumes_to_the_bit():
    def make(parameters):
        return MuonAdamW(
            [
                {"params": parameters[:4], "algorithm": "muon", "lr": 0.02},
                {"params": parameters[4:], "lr": 0.01},
            ]
        )

    whole = _parameters(0)
    _train(whole, [make(whole)], steps=6)
    first = _parameters(0)
    optimizer = make(first)
    _train(first, [optimizer], steps=3)
    second = [nn.Parameter(p.detach().clone()) for p in first]
    resumed = make(second)
    resumed.load_state_dict(optimizer.state_dict())
    _train(second, [resumed], steps=3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match="matrices only"):
        MuonAdamW([{"params": _parameters(0), "algorithm": "muon"}])
    assert update_scale(64, 16) == 2.0
    assert update_scale(16, 64) == 1.0


# ---------------------------------------------------------------------------------------------- throughput


def test_mfu_by_hand():
    # 1e6 tokens/s of 1e8 FLOPs on two H200: 1e14 / (2 x 989e12)
    assert model_flops_utilisation(1e6, 1e8, "NVIDIA H200", "bf16", 2) == pytest.approx(1e14 / 1978e12)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16"),
        ("NVIDIA H200", "fp32"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("Tesla V100-SXM2-16GB", "bf16"),
    ],
)
def test_no_mfu_where_the_peak_is_not_known(device, precision):
    assert model_flops_utilisation(1e6, 1e8, device, precision, 1) is None


def test_variants_of_a_gpu_have_their_own_peak():
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bf16") == peak_flops("NVIDIA A100-PCIE-40GB", "bf16") == 312e12
