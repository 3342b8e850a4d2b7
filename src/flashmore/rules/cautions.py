"""Caveats of backends that can run: calls whose results may be unexpected.

Those for the CPU were observed with torch 2.13, and a test compares all other results with float64. Those for
CUDA come from the named issues and were not reproduced here.
"""

import math

from flashmore.rules.call import AttentionCall
from flashmore.rules.rule import Rule, everywhere, on
from flashmore.rules.sdpa import can_run

LARGE_GIB = 4
"""Size of the matrix of weights from which on it is mentioned."""


def _misread(call: AttentionCall) -> bool:
    return call.dtype == "float64" and call.mask is not None and call.mask_dtype == "float32"


def _by_flash(call: AttentionCall) -> bool:
    return can_run("flash", call)


def _matrix_gib(call: AttentionCall) -> float:
    """Size of the (…, L, S) scores in the call's dtype."""
    entries = math.prod(call.query[:-1]) * call.source_length
    return entries * {"float64": 8, "float32": 4}.get(call.dtype, 2) / 2**30


CAUTIONS: tuple[Rule, ...] = (
    Rule(
        everywhere("manual", "math"),
        lambda call: _matrix_gib(call) >= LARGE_GIB,
        "the matrix of weights is written to memory, and takes 4 GiB or more here",
        "use a fused kernel, or a smaller batch",
    ),
    Rule(
        on("cpu", "flash"),
        _misread,
        "torch 2.13 misreads a float32 mask for float64 queries: wrong numbers, without a word",
        "make the mask float64",
    ),
    Rule(
        on("cpu", "sdpa"),
        lambda call: _misread(call) and _by_flash(call),
        "PyTorch picks flash, and torch 2.13 misreads a float32 mask for float64 queries there",
        "make the mask float64",
    ),
    Rule(
        on("cpu", "flash"),
        lambda call: call.mask is not None and call.causal,
        "attn_mask and is_causal=True both apply, though PyTorch documents an error, and math raises it",
        "combine both into one mask",
    ),
    Rule(
        on("cpu", "sdpa"),
        lambda call: call.mask is not None and call.causal and _by_flash(call),
        "attn_mask and is_causal=True both apply while PyTorch picks flash; where it cannot, math raises",
        "combine both into one mask",
    ),
    Rule(
        on("cpu", "manual", "sdpa", "math", "flash")
        + on("cuda", "manual", "sdpa", "math", "efficient", "cudnn"),
        lambda call: call.causal and call.length != call.source_length,
        "is_causal=True is aligned top-left: of {call.source_length} keys, query t sees keys 0 to t",
        "for new queries after cached keys pass a mask, torch.nn.attention.bias.causal_lower_right(L, S)",
    ),
    Rule(
        on("cuda", "cudnn"),
        lambda call: call.mask is not None and call.needs_grad and call.source_length % 128 == 64,
        "with a mask and {call.source_length} keys, NaN in the gradient of q is reported since torch 2.11"
        " (pytorch issue 196678)",
        "check your gradients, or use efficient",
    ),
    Rule(
        on("cuda", "cudnn"),
        lambda call: call.mask is not None and call.mask_dtype == "float32",
        "a float32 mask is reported to be misread, without a word (pytorch pull request 191612)",
        "make the mask bool or {call.dtype}",
    ),
)
