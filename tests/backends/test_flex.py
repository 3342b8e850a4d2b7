"""FlexAttention: compiled or refused, and right in inference on this CPU."""

from typing import Any

import pytest
import torch

from flashmore.backends.contract import attention, attention_accuracy
from flashmore.backends.explain import explain
from flashmore.backends.flex import _remembered_causal, flex
from flashmore.call import CallOptions
from flashmore.errors import BackendUnavailable
from flashmore.specs import backend_spec

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from PyTorch's compiler
SIZES: dict[str, Any] = {"batch_size": 2, "n_head": 4, "length": 24, "head_dim": 16}


def qkv(*, gradients: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 24, 16, generator=generator).requires_grad_(gradients) for _ in range(3)]


@pytest.mark.parametrize(
    "kind",
    ["causal", "padding of grouped heads", pytest.param("additive, 16 bits", marks=pytest.mark.long)],
)
def test_inference_is_within_the_error_budget(kind: str) -> None:
    q, k, v = qkv()
    options: dict[str, Any] = {"causal": True}
    if kind.startswith("padding"):
        options = {"mask": torch.arange(24) < torch.tensor([9, 20])[:, None, None, None]}
        k, v = k[:, :2], v[:, :2, :, :8]
    if kind.startswith("additive"):
        options = {"mask": torch.randn(24, 24, generator=torch.Generator().manual_seed(1))}
        q, k, v = (tensor.bfloat16() for tensor in (q, k, v))
    (judged,) = attention_accuracy("flex", q, k, v, gradients=False, **options)
    assert judged.good, judged


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"passes": "both"}, "no backward pass on cpu"),
        ({"passes": "forward", "dropout": 0.5}, "which FlexAttention does not support"),
        ({"passes": "forward", "dtype": "float64"}, "the dtype is float64"),
        ({"passes": "forward", "causal": True, "mask": "bool"}, "not both"),
    ],
    ids=str,
)
def test_explain_tells_why_it_cannot_run_without_compiling(options: dict[str, Any], words: str) -> None:
    (said,) = [
        one for one in explain(CallOptions(**SIZES, **options).call("cpu")).backends if one.name == "flex"
    ]
    assert not said.usable
    assert any(words in reason for reason in said.reasons)
    assert said.documentation.endswith("flex_attention.html")


@pytest.mark.parametrize(
    "options",
    [{"dropout_p": 0.5}, {"mask": torch.ones(24, 24, dtype=torch.int64)}, {"gradients": True}],
    ids=str,
)
def test_what_its_rules_refuse_is_refused_with_the_reason(options: dict[str, Any]) -> None:
    q, k, v = qkv(gradients=options.pop("gradients", False))
    with pytest.raises(BackendUnavailable) as caught:
        attention(q, k, v, backend="flex", **options)
    assert not caught.value.reasons[0].startswith("torch says")
    assert "flex" not in caught.value.usable


@pytest.mark.parametrize(
    ("options", "words"),
    [({"head_dim": 8}, "needs at least 16"), ({"dropout": 0.1}, "dropout"), ({}, None)],
    ids=str,
)
def test_rules_on_cuda(options: dict[str, Any], words: str | None) -> None:
    reasons = backend_spec("flex").reasons_against(CallOptions(**SIZES | options).call("cuda"))
    assert len(reasons) == (words is not None)
    assert all((words or "") in str(reason) for reason in reasons)


def test_inputs_that_require_gradients_are_no_obstacle_without_grad_mode() -> None:
    with torch.no_grad():
        out = attention(*qkv(gradients=True), backend="flex", causal=True)
    torch.testing.assert_close(out, attention(*qkv(), backend="manual", causal=True))


def test_a_mask_that_requires_gradients_is_an_obstacle_on_the_cpu_in_grad_mode() -> None:
    mask = torch.zeros(24, 24, requires_grad=True)
    options: dict[str, Any] = {"mask": mask, "causal": False, "scale": None, "dropout_p": 0.0}
    with pytest.raises(RuntimeError, match="no backward pass on cpu"):
        flex(*qkv(), **options)


@pytest.mark.long
def test_a_mask_that_requires_gradients_is_no_obstacle_without_grad_mode() -> None:
    mask = torch.zeros(24, 24, requires_grad=True)
    with torch.no_grad():
        out = flex(*qkv(), mask=mask, causal=False, scale=None, dropout_p=0.0)
    torch.testing.assert_close(out, attention(*qkv(), backend="manual"))


@pytest.mark.cuda
def test_output_and_gradients_on_cuda_are_within_the_error_budget() -> None:
    q, k, v = (tensor.cuda().bfloat16() for tensor in qkv())
    judged = attention_accuracy("flex", q, k, v, causal=True)
    assert len(judged) == 4
    assert all(one.good for one in judged), judged


def test_a_causal_mask_made_in_inference_mode_can_be_saved_for_a_gradient() -> None:
    with torch.inference_mode():
        mask = _remembered_causal(24, 24, "cpu")
    assert not mask.kv_num_blocks.is_inference()
