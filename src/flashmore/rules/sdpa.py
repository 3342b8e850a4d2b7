"""The rules for PyTorch's kernels, one per row, so that all reasons are reported at once.

PyTorch reports only the first failed check, in messages that change between releases, and on a CPU-only build
nothing for CUDA. So the rules are stated here, for torch 2.11 to 2.13. A test compares every row for the CPU,
and with a GPU every row for CUDA, with the installed torch. The rows for CUDA and MPS come from documentation
and source and were not probed; `explain` runs every backend if the device is present, which overrides this
table.
"""

from flashmore.rules.call import AttentionCall
from flashmore.rules.cuda import CUDA
from flashmore.rules.rule import Rule, everywhere, on

FUSED = ("flash", "efficient", "cudnn")
FLASH = on("cpu", "flash") + on("cuda", "flash")
EVERY_FUSED = on("cpu", "flash") + on("cuda", *FUSED)
"""All fused kernels."""

GENERAL: tuple[Rule, ...] = (
    Rule(
        everywhere("sdpa", "math", *FUSED),
        lambda call: call.mask is not None and call.mask_dtype not in ("bool", "float32", call.dtype),
        "a mask of {call.mask_dtype} meets queries of {call.dtype}",
        "make the mask bool, float32 or {call.dtype}",
    ),
    Rule(
        everywhere("math"),
        lambda call: call.mask is not None and call.causal,
        "math takes no attn_mask together with is_causal=True",
        "combine both into one mask",
    ),
    Rule(
        everywhere("sdpa"),
        lambda call: (
            call.mask is not None and call.causal and not any(can_run(kernel, call) for kernel in FUSED)
        ),
        "without a fused kernel PyTorch falls back to math, which takes no attn_mask with is_causal=True",
        "combine both into one mask",
    ),
    Rule(
        everywhere("manual"),
        lambda call: call.mask is not None and call.causal,
        "flashmore takes causal or a mask, never both",
        "combine both into one mask",
    ),
    Rule(
        everywhere("manual"),
        lambda call: not (call.four_dimensional and call.leads_equal),
        "flashmore's own is written for (B, H, T, D) with the same B and H everywhere",
        "lift q, k and v to 4-D and repeat k and v to q's batch and heads",
    ),
    Rule(
        EVERY_FUSED,
        lambda call: not call.four_dimensional,
        "q {call.query}, k {call.key} and v {call.value} are not all 4-D",
        "lift them to (B, H, T, D), for example with q[:, None]",
    ),
    Rule(
        FLASH,
        lambda call: not (call.leads_equal or call.groups(key_as_value=True)),
        "batch sizes or heads differ, and up to torch 2.13 this kernel does not broadcast:"
        " q {call.query}, k {call.key}, v {call.value}",
        "expand k and v to q's batch; pass enable_gqa=True where k and v share heads that divide q's",
    ),
    Rule(
        on("cpu", "flash") + on("cuda", "efficient"),
        lambda call: not call.unit_stride,
        "the last dimension of q, k or v is not contiguous",
        "call .contiguous() on it",
    ),
    Rule(
        FLASH,
        lambda call: call.value_dim != call.head_dim,
        "v has {call.value_dim} channels a head, q has {call.head_dim}",
        "pad the smaller one with zeros",
    ),
    Rule(
        on("cpu", "flash") + on("cuda", "cudnn"),
        lambda call: call.mask is not None and len(call.mask) not in (2, 4),
        "the mask {call.mask} is neither 2-D nor 4-D",
        "make it (L, S) or (B, H, L, S), with 1 where it repeats",
    ),
    Rule(
        on("cpu", "flash") + on("cuda", "cudnn"),
        lambda call: call.mask_needs_grad,
        "the mask needs a gradient",
        "detach the mask if it is not learned; under no_grad, too",
    ),
)

CPU: tuple[Rule, ...] = (
    Rule(
        on("cpu", "efficient", "cudnn"),
        lambda _: True,
        "PyTorch has no CPU kernel of this name",
        "use flash, which on the CPU is a CPU kernel of that name, or a CUDA device",
    ),
    Rule(
        on("cpu", "flash"),
        lambda call: call.dropout_p > 0,
        "dropout_p = {call.dropout_p}, and the CPU kernel knows no dropout",
        "set dropout_p=0.0, or drop out after attention",
    ),
    Rule(
        on("cpu", "sdpa"),
        # PyTorch reads the mask's second-last size when no other check has refused flash before.
        lambda call: (
            call.mask is not None
            and len(call.mask) < 2
            and not call.mask_needs_grad
            and call.dropout_p == 0
            and call.four_dimensional
            and (call.leads_equal or call.groups(key_as_value=True))
        ),
        "PyTorch looks for the second-last dimension of the mask {call.mask}, which has none (IndexError)",
        "make it (1, S), or force math, which never looks",
    ),
)

MPS: tuple[Rule, ...] = (
    Rule(
        on("mps", *FUSED),
        lambda _: True,
        "PyTorch has no MPS kernel of this name",
        "use sdpa or math, which have an operator of their own there",
    ),
    Rule(
        on("mps", "manual", "sdpa", "math"),
        lambda call: call.dtype == "float64",
        "MPS has no float64",
        "use float32",
    ),
)

RULES: tuple[Rule, ...] = GENERAL + CPU + MPS + CUDA


def can_run(kernel: str, call: AttentionCall) -> bool:
    """Whether no row excludes one of PyTorch's kernels."""
    return not any(rule.breaks_on(kernel, call) for rule in RULES)
