"""Which kernels PyTorch selects for rewritten lines: on the CPU by running them, on CUDA by the rules."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from flashmore.backends.contract import describe_call
from flashmore.specs import backends, usable
from flashmore.upgrade.verify.case import Lines, Setting, forward
from flashmore.upgrade.verify.tensors import Argument

UNFUSED = "math"
PREFERRED = ("flash", "efficient", "cudnn")
"""The order in which PyTorch tries the fused kernels on CUDA; newer GPUs may try cuDNN's first."""


class _Calls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.selected: list[tuple[str, str]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.selected.append(_selected(*args, **given))
        return func(*args, **given)


def selected(lines: Lines, arguments: Sequence[Argument], setting: Setting) -> list[tuple[str, str]]:
    """For each call of SDPA in a run of the lines, its kernels on the CPU and on CUDA, as backends' names."""
    calls = _Calls()

    def watched(*values: Any) -> Any:
        with calls:
            return lines(*values)

    forward(watched, arguments, setting)
    return calls.selected


def _selected(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[str, str]:
    choice = torch._fused_sdp_choice(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    name = SDPBackend(choice).name
    here = next((spec.name for spec in backends().values() if spec.sdp_backend == name), UNFUSED)
    call = describe_call(
        query, key, value, mask=attn_mask, causal=is_causal, dropout_p=dropout_p, gqa=enable_gqa
    )
    possible = usable(replace(call, device="cuda"))
    return here, next((each for each in PREFERRED if each in possible), UNFUSED)
