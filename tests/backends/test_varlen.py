"""varlen_attn: what is handed to the CUDA kernel, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flashmore.backends import varlen as module
from flashmore.backends.contract import attention, attention_accuracy
from flashmore.backends.explain import explain
from flashmore.call import CallOptions
from flashmore.errors import BackendUnavailable
from flashmore.specs import backend_spec

SIZES: dict[str, Any] = {"batch_size": 2, "n_head": 4, "length": 16, "head_dim": 16, "dtype": "bfloat16"}


def on_cpu(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *sizes: int, **options: Any
) -> Tensor:
    """What PyTorch documents of the kernel, which no CPU has: each sequence by itself."""
    outs = []
    assert sizes == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    for q_0, q_1, k_0, k_1 in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        assert options.get("enable_gqa", False) == (q.size(1) != k.size(1))
        one = (x[a:b].transpose(0, 1)[None] for x, a, b in ((q, q_0, q_1), (k, k_0, k_1), (v, k_0, k_1)))
        causal = {(-1, 0): True, (-1, -1): False}[options["window_size"]]
        outs.append(
            attention(*one, backend="manual", causal=causal, scale=options["scale"])[0].transpose(0, 1)
        )
    return torch.cat(outs)


@pytest.mark.parametrize(("causal", "S", "H_kv"), [(True, 7, 4), (False, 5, 4), (False, 7, 2)])
def test_sequences_are_laid_out_as_the_kernel_takes_them(
    causal: bool, S: int, H_kv: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "varlen_attn", on_cpu)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, H, T, 8, generator=generator) for H, T in ((4, 7), (H_kv, S), (H_kv, S)))
    judged = attention_accuracy("varlen", q, k, v, causal=causal)
    assert len(judged) == 4
    assert all(one.good for one in judged), judged


def test_no_cpu_has_it_and_that_is_said() -> None:
    (said,) = [one for one in explain(CallOptions(**SIZES).call("cpu")).backends if one.name == "varlen"]
    assert said.reasons == ("varlen_attn is a CUDA kernel (use flash, or a CUDA device)",)
    q = torch.zeros(1, 1, 4, 16, dtype=torch.bfloat16)
    with pytest.raises(BackendUnavailable, match="CUDA kernel"):
        attention(q, q, q, backend="varlen")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float32"}, "the dtype is float32"),
        ({"mask": "padding"}, "does not support attn_mask"),
        ({"dropout": 0.1}, "which varlen_attn does not support"),
        ({"value_dim": 8}, "v has 8 channels"),
        ({"head_dim": 512}, "above 256"),
        ({"length": 1, "source_length": 16, "causal": True}, "bottom-right"),
        ({"n_kv_head": 2, "gqa": True, "length": 1, "source_length": 16}, None),
    ],
    ids=str,
)
def test_rules_on_cuda(options: dict[str, Any], words: str | None) -> None:
    reasons = backend_spec("varlen").reasons_against(CallOptions(**SIZES | options).call("cuda"))
    assert len(reasons) == (words is not None)
    assert all((words or "") in str(reason) for reason in reasons)


@pytest.mark.cuda
@pytest.mark.parametrize("causal", [True, False])
def test_output_and_gradients_on_cuda_are_within_the_error_budget(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 64, 64, device="cuda", dtype=torch.bfloat16)
    judged = attention_accuracy("varlen", q, k, v, causal=causal)
    assert len(judged) == 4
    assert all(one.good for one in judged), judged
