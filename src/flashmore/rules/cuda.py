"""Rules for the CUDA kernels on NVIDIA GPUs, for torch 2.11 to 2.13.

They come from the documentation,
https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html, and from
PyTorch's own checks (ATen/native/transformers/cuda/sdp_utils.cpp), and were not probed. Releases differ in
details.
"""

from flashmore.rules.call import AttentionCall
from flashmore.rules.rule import Rule, on


def _alignment(call: AttentionCall) -> int:
    """The memory-efficient kernel needs a number of channels that is a multiple of this."""
    tensor_cores = call.capability >= (8, 0) or (call.capability >= (7, 0) and call.dtype != "float32")
    if not tensor_cores:
        return 1
    return 4 if call.dtype == "float32" else 8


def _cudnn_takes(call: AttentionCall) -> bool:
    dims = (call.head_dim, call.value_dim)
    return max(dims) <= 128 or (dims == (192, 128) and call.capability[0] in (9, 10))


CUDA: tuple[Rule, ...] = (
    Rule(
        on("cuda", "flash", "cudnn"),
        lambda call: call.dtype not in ("float16", "bfloat16"),
        "the dtype is {call.dtype}",
        "use bfloat16 or float16, for example under autocast",
    ),
    Rule(
        on("cuda", "efficient"),
        lambda call: call.dtype == "float64",
        "the dtype is float64",
        "use float32, bfloat16 or float16",
    ),
    Rule(
        on("cuda", "efficient"),
        lambda call: call.dtype == "bfloat16" and call.capability < (8, 0),
        "bfloat16 on compute capability {call.capability[0]}.{call.capability[1]}",
        "use float16 or float32; bfloat16 needs 8.0 or newer (Ampere)",
    ),
    Rule(
        on("cuda", "flash", "cudnn"),
        lambda call: not (8, 0) <= call.capability <= (12, 1),
        "the GPU has compute capability {call.capability[0]}.{call.capability[1]}",
        "it needs 8.0 (Ampere) to 12.1; efficient runs on older ones",
    ),
    Rule(
        on("cuda", "flash"),
        lambda call: call.mask is not None,
        "FlashAttention takes no attn_mask",
        "use is_causal=True if the mask is causal and square, or another backend",
    ),
    Rule(
        on("cuda", "flash"),
        lambda call: call.causal and call.length != call.source_length,
        "is_causal=True with L = {call.length}, S = {call.source_length}: it would be aligned bottom-right",
        "use L = S, or an explicit mask with another backend",
    ),
    Rule(
        on("cuda", "flash"),
        lambda call: call.head_dim > 256,
        "the head dimension {call.head_dim} is above 256",
        "use more heads of at most 256 channels",
    ),
    Rule(
        on("cuda", "flash"),
        lambda call: (
            call.needs_grad
            and ((8, 6) <= call.capability <= (8, 9) or call.capability >= (12, 0))
            and (192 < call.head_dim <= 224 or (call.head_dim > 224 and call.dropout_p > 0))
        ),
        "training with head dimension {call.head_dim} and dropout {call.dropout_p} on compute capability"
        " {call.capability[0]}.{call.capability[1]}, whose shared memory is too small for it",
        "use at most 192 channels a head, or 225 to 256 without dropout",
    ),
    Rule(
        on("cuda", "flash", "cudnn"),
        lambda call: not call.unit_stride and call.head_dim > 1,
        "the last dimension of q, k or v is not contiguous",
        "call .contiguous() on it",
    ),
    Rule(
        on("cuda", "efficient"),
        # It passes PyTorch's check but fails in the kernel, so PyTorch's default fails too.
        lambda call: call.mask is not None and call.mask_dtype not in ("bool", call.dtype),
        "a mask of {call.mask_dtype} meets queries of {call.dtype} in a kernel that reads one dtype",
        "make the mask bool or {call.dtype}",
    ),
    Rule(
        on("cuda", "efficient", "cudnn"),
        lambda call: call.mask is not None and not call.mask_unit_stride,
        "the last dimension of the mask is not contiguous",
        "call .contiguous() on it",
    ),
    Rule(
        on("cuda", "efficient"),
        lambda call: call.head_dim % _alignment(call) > 0 or call.value_dim % _alignment(call) > 0,
        "the head dimensions {call.head_dim} and {call.value_dim} are not multiples of 8 (of 4 in float32)",
        "pad them with zeros",
    ),
    Rule(
        on("cuda", "efficient"),
        lambda call: not call.leads_equal,
        "batch sizes or heads differ, and up to torch 2.13 this kernel neither broadcasts nor groups heads:"
        " q {call.query}, k {call.key}, v {call.value}",
        "repeat k and v to q's batch and heads, or use flash with enable_gqa=True",
    ),
    Rule(
        on("cuda", "cudnn"),
        lambda call: not (call.leads_equal or call.groups(key_as_value=False)),
        "batch sizes or heads differ, and up to torch 2.13 this kernel does not broadcast:"
        " q {call.query}, k {call.key}, v {call.value}",
        "expand k and v to q's batch; pass enable_gqa=True where their heads divide q's",
    ),
    Rule(
        on("cuda", "cudnn"),
        lambda call: call.head_dim % 8 > 0 or call.value_dim % 8 > 0,
        "the head dimensions {call.head_dim} and {call.value_dim} are not multiples of 8",
        "pad them with zeros",
    ),
    Rule(
        on("cuda", "cudnn"),
        lambda call: not _cudnn_takes(call),
        "the head dimensions {call.head_dim} and {call.value_dim} are above 128, which only some versions of"
        " cuDNN take",
        "use at most 128 channels a head, or on compute capability 9 or 10 exactly 192 and 128",
    ),
    Rule(
        on("cuda", "cudnn"),
        lambda call: call.dropout_p * 16 % 1 != 0,
        "dropout_p = {call.dropout_p} is not a multiple of 1/16, and torch 2.13 no longer rounds it",
        "use 0, 0.0625, 0.125, …",
    ),
    Rule(
        on("cuda", "cudnn"),
        lambda call: call.deterministic,
        "deterministic algorithms are asked for",
        "use flash, efficient or math, or torch.use_deterministic_algorithms(False)",
    ),
    Rule(
        on("cuda", "cudnn"),
        lambda call: call.source_length == 1 or (call.length == 1 and call.dropout_p > 0),
        "L = {call.length} and S = {call.source_length}: a single key, or a single query with dropout",
        "use flash or efficient",
    ),
    Rule(
        on("cuda", "cudnn"),
        lambda call: call.four_dimensional and max(call.query[:2]) > 65_535,
        "more than 65,535 items or heads: {call.query}",
        "cut the batch into smaller ones",
    ),
)
