"""The learning rate's course, and Muon: PyTorch's own, and ours for a graph."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flashmore.config import TrainConfig
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.training.dataset import shaped
from flashmore.training.optimizers import (
    MUON_MOMENTUM,
    NEWTON_SCHULZ,
    NEWTON_SCHULZ_STEPS,
    learning_rate_share,
    muon_matrices,
    optimizers_of,
    orthogonal,
)
from flashmore.training.step import EagerStep

CONFIG = ModelConfig("transformer", vocab_size=27, block_size=16, n_layer=2, n_head=2, n_embd=16)


def test_the_schedule_rises_and_falls() -> None:
    config = TrainConfig(max_steps=100, warmup_steps=10, lr_schedule="cosine", min_lr_ratio=0.1)
    shares = [learning_rate_share(step, config) for step in range(101)]
    assert all(before < after for before, after in pairwise(shares[:11]))
    assert all(before > after for before, after in pairwise(shares[10:]))
    assert 0 < shares[0] < 0.1
    assert shares[10] == 1
    assert shares[55] == pytest.approx((1 + 0.1) / 2)  # halfway down the cosine
    assert shares[100] == pytest.approx(0.1)
    assert learning_rate_share(1000, config) == pytest.approx(0.1)


def test_a_constant_learning_rate_stays_after_its_warm_up() -> None:
    config = TrainConfig(max_steps=100, warmup_steps=4, lr_schedule="constant")
    shares = [learning_rate_share(step, config) for step in range(100)]
    assert shares[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert set(shares[4:]) == {1.0}
    assert learning_rate_share(0, replace(config, warmup_steps=0)) == 1


def test_muon_is_for_the_matrices_of_the_blocks_and_adamw_for_the_rest() -> None:
    model = build(CONFIG, 0)
    chosen = muon_matrices(model)
    assert set(chosen) == {name for name in chosen if name.startswith("blocks.") and name.endswith("weight")}
    assert len(chosen) == 4 * CONFIG.n_layer
    adamw, muon = optimizers_of(model, TrainConfig(preset="names-long"), fused=True)
    in_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    in_adamw = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert in_muon == {id(p) for p in chosen.values()}
    assert in_adamw == {id(p) for p in model.parameters()} - in_muon
    assert len(optimizers_of(model, TrainConfig(preset="makemore"), fused=True)) == 1


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64), (64, 1)], ids=str)
def test_singular_values_are_about_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)
    found = orthogonal(matrices.flatten(), [shape] * 3).view(3, *shape) / max(1, shape[0] / shape[1]) ** 0.5
    values = torch.linalg.svdvals(found)
    # Five steps of the quintic leave a band around 1, by design; the smallest of a square come up slowly.
    assert values.max() < 1.3
    assert values.median() == pytest.approx(1, abs=0.35)
    assert values.min() > (0.05 if shape[0] == shape[1] else 0.5)
    U, _, V = torch.linalg.svd(matrices, full_matrices=False)
    cosine = nn.functional.cosine_similarity(found.flatten(1), (U @ V).flatten(1))
    assert cosine.min() > 0.95


def test_a_batch_of_matrices_is_each_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 8), (8, 16), (16, 8)]
    parts = [torch.randn(shape, generator=generator) for shape in shapes]
    together = orthogonal(torch.cat([part.flatten() for part in parts]), shapes)
    alone = [orthogonal(part.flatten(), [shape]) for part, shape in zip(parts, shapes, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("shape", [(16, 16), (24, 64)], ids=str)
def test_steps_on_the_gram_matrix_are_those_on_the_matrix(shape: tuple[int, int]) -> None:
    """The steps of `torch.optim.Muon`, in float64; the matrix has singular values from 1 to 1e-6, and 0."""
    generator = torch.Generator().manual_seed(0)
    U, _, V = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    values = torch.logspace(0, -6, shape[0])
    values[-1] = 0
    matrix = (U * values) @ V
    a, b, c = NEWTON_SCHULZ
    x = matrix.double() / matrix.double().norm()
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found = orthogonal(matrix.flatten(), [shape]).view(shape)
    torch.testing.assert_close(found, x.float(), atol=1e-3, rtol=0)


def test_a_momentum_of_zeros_changes_nothing() -> None:
    assert not orthogonal(torch.zeros(128), [(8, 16)]).any()


def test_a_compiler_can_trace_it() -> None:
    """Dynamo refuses calls whose results are not tensors."""
    shapes, flat = [(8, 16), (16, 8)], torch.randn(256)
    traced = torch.compile(orthogonal, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(flat, shapes), orthogonal(flat, shapes))


def test_a_gradient_that_overflows_in_float16_skips_the_update_of_both_optimizers() -> None:
    config = TrainConfig(preset="names-long", dtype="float16", batch_size=2)
    model = build(CONFIG, 0)
    step = EagerStep(model, config, torch.device("cpu"), fused=False)
    ids = torch.randint(1, 27, (2, 8))
    embedding: Any = model.get_parameter("wte.weight")  # AdamW updates it
    embedding.register_hook(lambda gradient: gradient * torch.inf)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scale = step.scaler.get_scale()
    step([[shaped(ids, ids, torch.tensor([8, 8]), "padded")]], [(1e-2, 1e-2)])
    assert step.scaler.get_scale() == scale / 2
    changed = [name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])]
    assert changed == []


def test_muon_is_the_one_of_pytorch() -> None:
    """PyTorch's computes in bfloat16: the updates agree to its 8 bits of mantissa."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 48), (64, 16), (16, 16)]
    lr, decay = 0.02, 0.1
    theirs = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    ours = torch.cat([p.detach().flatten() for p in theirs])
    optimizer = torch.optim.Muon(theirs, lr=lr, weight_decay=decay, momentum=MUON_MOMENTUM)
    mean = torch.zeros_like(ours)
    for _ in range(5):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        before = ours.clone()
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()  # type: ignore[no-untyped-call]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        mean.lerp_(flat, 1 - MUON_MOMENTUM)
        ours = ours * (1 - lr * decay) - lr * orthogonal(flat.lerp(mean, MUON_MOMENTUM), shapes)
        expected = torch.cat([p.detach().flatten() for p in theirs])
        assert relative(ours - before, expected - before) < 0.02
        ours = expected.clone()  # so that each update is compared by itself


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
