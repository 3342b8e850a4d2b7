"""Hold `flashmore explain` against the kernel that PyTorch's profiler sees; a part of gpu.py.

python benchmarks/gpu_kernels.py DEVICE [DTYPE…]

Prints one JSON document: for calls of several dtypes, head dimensions, lengths and masks, which kernel
`explain` says that PyTorch picks, which one ran, and the names of the kernels on the GPU.
"""

import itertools
import json
import sys
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from flashmore import AttentionCall, explain
from flashmore.specs import backends

DTYPES = ("float32", "float16", "bfloat16")
SIZES = ((8, 4, 16, 16), (2, 4, 512, 64), (2, 4, 512, 128))
"""(B, H, T, D): makemore's and, where the size matters, on a GPU, those of usual models."""
KINDS: tuple[dict[str, Any], ...] = ({"causal": True}, {"causal": False}, {"dropout_p": 0.1}, {"mask": True})
CALLED = "aten::_scaled_dot_product_"
"""How the names of PyTorch's operators for the kernels of attention begin."""


def main() -> int:
    """Compare every call; 0 if the explanations are right."""
    device, dtypes = sys.argv[1], sys.argv[2:] or DTYPES
    sizes = SIZES if device == "cuda" else SIZES[:1]
    calls = []
    for dtype, size, kind in itertools.product(dtypes, sizes, KINDS):
        mask = size[2:3] * 2 if kind.get("mask") else None
        call = AttentionCall(size, size, size, dtype=dtype, device=device, **kind | {"mask": mask})
        said = explain(call)
        calls.append({"call": asdict(call), "said": said.default, "how": said.how, **observed(call)})
    wrong = [one for one in calls if one["said"] != one["ran"]]
    print(json.dumps({"device": device, "calls": calls, "different": len(wrong)}))
    for one in wrong:
        print(f"explain says {one['said']}, {one['ran']} ran: {one['call']}", file=sys.stderr)
    return 1 if wrong else 0


def observed(call: AttentionCall) -> dict[str, Any]:
    """The kernel that PyTorch picks for random inputs of the call, None where it fails; the GPU's kernels."""
    dtype = getattr(torch, call.dtype)
    q, k, v = (
        torch.randn(shape, device=call.device).to(dtype).requires_grad_()
        for shape in (call.query, call.key, call.value)
    )
    mask = None if call.mask is None else torch.ones(call.mask, dtype=torch.bool, device=call.device)
    on_gpu = [ProfilerActivity.CUDA] if call.device == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *on_gpu], acc_events=True) as profiler:
        try:
            F.scaled_dot_product_attention(q, k, v, mask, call.dropout_p, call.causal)
        except RuntimeError as error:
            return {"ran": None, "failure": str(error).partition("\n")[0], "kernels": []}
        if on_gpu:
            torch.cuda.synchronize()
    seen = profiler.events()
    operators = [event.name.replace("_", "") for event in seen if event.name.startswith(CALLED)]
    fused = [spec.name for spec in backends().values() for name in operators if _is(spec.operator, name)]
    kernels = sorted({event.name for event in seen if event.device_type.name == "CUDA"})
    return {"ran": fused[0] if fused else "math", "kernels": kernels}


def _is(operator: str | None, name: str) -> bool:
    return operator is not None and operator in name


if __name__ == "__main__":
    sys.exit(main())
