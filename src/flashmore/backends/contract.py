"""The contract of `attention(q, k, v)`.

Shapes: B batch, H heads, T queries, S keys, D channels per head. q is (B, H, T, D), k and v are
(B, H_kv, S, D).
`manual` in float64 is the reference; `attention_accuracy` compares a backend's output and gradients with it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from flashmore.errors import BackendUnavailable, ConfigError
from flashmore.measuring.accuracy import Judgement, float64_device, judge_all
from flashmore.rules import AttentionCall
from flashmore.specs import backend_spec, usable

Compute = Callable[..., Tensor]
"""A backend's function (q, k, v, *, mask, causal, scale, dropout_p), all as `attention` takes them."""
MOST_SAID = 500
"""Most characters of an error of torch; one of the compiler may have thousands."""
LOADED: dict[str, Compute] = {}


def load_backend(name: str) -> Compute:
    """Load a backend's function, before `attention` is compiled: compilation should import nothing."""
    if name not in LOADED:
        LOADED[name] = backend_spec(name).load()
    return LOADED[name]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    backend: str,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute attention with the named backend.

    Args:
        q: queries, (B, H, T, D), floating point.
        k: keys, (B, H_kv, S, D), of q's dtype and device; H_kv divides H, and each head of k and v serves
            H / H_kv consecutive heads of q (grouped heads).
        v: values, (B, H_kv, S, D_v), likewise; D_v is usually D.
        backend: a name in `flashmore.specs.backends`; there is no default, so that the caller always knows
            which one ran.
        causal: query t attends to keys 0 … t (aligned top-left, so meant for T = S).
        mask: broadcastable to (T, S) or (B, H, T, S): bool, True for positions that take part in attention,
            or floating point, added to the scores. Not together with `causal`.
        scale: factor on the scores; None means 1/√D.
        dropout_p: probability of dropping a weight. It applies whenever it is above 0: pass 0 in evaluation.

    Returns:
        (B, H, T, D_v), of q's dtype. For a fully masked query, the fused kernels return 0 and `manual` NaN.

    Raises:
        ConfigError: an unknown backend, `mask` together with `causal`, or shapes outside this contract.
        BackendUnavailable: the backend cannot run for this device, dtype and shape; it lists every reason.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
    """
    compute = load_backend(backend)
    _check(q, k, v, causal, mask)
    try:
        return compute(q, k, v, mask=mask, causal=causal, scale=scale, dropout_p=dropout_p)
    except (RuntimeError, IndexError) as error:
        # torch's messages change between releases, so the reasons come from our rules
        gqa = q.size(1) != k.size(1)
        call = describe_call(q, k, v, mask=mask, causal=causal, dropout_p=dropout_p, gqa=gqa)
        spec = backend_spec(backend)
        reasons = tuple(map(str, spec.reasons_against(call)))
        if not reasons and spec.sdp_backend is None and not spec.compiled:
            raise
        names = tuple(name for name in usable(call) if name != backend)
        said = " ".join(str(error).split())[:MOST_SAID]
        raise BackendUnavailable(backend, reasons or (f"torch says: {said}",), names) from error


def describe_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    gqa: bool = False,
) -> AttentionCall:
    """Describe a call by the properties that determine which kernels can run.

    Args:
        q: queries (…, H, L, D).
        k: keys (…, H_kv, S, D).
        v: values (…, H_kv, S, D_v).
        mask: `attn_mask` of scaled_dot_product_attention.
        causal: its `is_causal`.
        dropout_p: its `dropout_p`.
        gqa: its `enable_gqa`.

    Raises:
        ConfigError: no kernel supports them.
    """
    return AttentionCall(
        query=tuple(q.shape),
        key=tuple(k.shape),
        value=tuple(v.shape),
        dtype=str(q.dtype).removeprefix("torch."),
        device=q.device.type,
        mask=None if mask is None else tuple(mask.shape),
        mask_dtype="bool" if mask is None else str(mask.dtype).removeprefix("torch."),
        mask_needs_grad=mask is not None and mask.requires_grad,
        mask_unit_stride=mask is None or mask.dim() == 0 or mask.stride(-1) == 1,
        causal=causal,
        dropout_p=dropout_p,
        needs_grad=torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)),
        gqa=gqa,
        unit_stride=all(t.stride(-1) == 1 for t in (q, k, v)),
        capability=torch.cuda.get_device_capability(q.device) if q.device.type == "cuda" else (8, 0),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def random_inputs(call: AttentionCall, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Standard normal q, k and v, and the mask, the same for the same call.

    Every query sees key 0. A boolean mask of all queries alike is padding: it hides the last keys of each
    item, at most a half. Another hides each key with probability ½. A mask of numbers is standard normal.

    Returns:
        q, k and v, which require gradients if `call.needs_grad`, and the mask or None.
    """
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, call.dtype)
    q, k, v = (
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(call.needs_grad)
        for shape in (call.query, call.key, call.value)
    )
    if call.mask is None:
        return q, k, v, None
    numbers = torch.randn(call.mask, generator=generator)
    if call.mask_dtype != "bool":
        return q, k, v, numbers.to(device, getattr(torch, call.mask_dtype))
    position = torch.arange(call.mask[-1])
    if len(call.mask) > 1 and call.mask[-2] == 1:
        seen = torch.rand((*call.mask[:-1], 1), generator=generator) * len(position) / 2
        return q, k, v, (position < len(position) - seen.floor()).to(device)
    return q, k, v, ((numbers > 0) | (position == 0)).to(device)


def attention_accuracy(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    gradients: bool = True,
    part: tuple[int, int] | None = None,
    attend: Callable[..., Tensor] = attention,
) -> tuple[Judgement, ...]:
    """Judge the output and, in training, all three gradients of one backend on these inputs.

    Args:
        backend, q, k, v, causal, mask, scale: as `attention` takes them, in the precision under test.
        gradients: whether to judge them; False is inference, without a graph.
        part: compare only this many batch items and heads of q, the last ones, if the float64 (T, S) matrices
            for all would not fit; a multiple of H / H_kv heads. The backend still computes everything; None
            compares everything.
        attend: the function under test: `attention`, or its compiled form.

    Returns:
        One judgement each for `out` and, with `gradients`, `dq`, `dk` and `dv`.

    Raises:
        BackendUnavailable: the backend cannot run on these inputs.
        ValueError: the float64 result is not finite (a fully masked row), so nothing can be compared.
    """
    # A random cotangent: a sum as the loss would hide errors that cancel.
    shape = (*q.shape[:3], v.size(3))
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(
        name: str, dtype: torch.dtype, attend: Callable[..., Tensor], mask: Tensor | None, *qkv: Tensor
    ) -> dict[str, Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_(gradients) for tensor in qkv]
        if mask is not None:  # the backend and `manual` in the same precision get it as it is
            lifted = dtype == torch.float64 and mask.dtype != torch.bool
            mask = mask.to(leaves[0].device, dtype if lifted else mask.dtype)
        with torch.set_grad_enabled(gradients):
            out = attend(*leaves, backend=name, causal=causal, mask=mask, scale=scale)
        if not gradients:
            return {"out": out}
        wanted = cotangent[-out.size(0) :, -out.size(1) :].to(out.dtype).to(out.device)
        grads = torch.autograd.grad(out, leaves, wanted)
        return dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *grads), strict=True))

    B, H = part or q.shape[:2]
    H_kv = H * k.size(1) // q.size(1)
    # The last ones, because index overflow occurs at the end.
    heads = {"out": H, "dq": H, "dk": H_kv, "dv": H_kv}
    answers = {
        name: tensor[-B:, -heads[name] :]
        for name, tensor in run(backend, q.dtype, attend, mask, q, k, v).items()
    }
    last = q[-B:, -H:], k[-B:, -H_kv:], v[-B:, -H_kv:]
    if mask is not None and mask.dim() > 2:
        # a size of 1 is repeated, so its last one serves all; a mask (H, T, S) has no batch
        mask = mask[-B:, -H:] if mask.dim() == 4 else mask[-H:]
    plain = run("manual", q.dtype, attention, mask, *last)
    on_float64 = (tensor.to(float64_device(q.device)) for tensor in last)
    exact = run("manual", torch.float64, attention, mask, *on_float64)
    return judge_all(answers, plain, exact)


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> None:
    if causal and mask is not None:
        raise ConfigError("causal or a mask", "both", "one combined mask, or causal=True without a mask")
    fits = q.dim() == k.dim() == v.dim() == 4 and k.shape[:3] == v.shape[:3] and q.size(3) == k.size(3)
    # Not min(), which torch.export would evaluate for the sizes at hand.
    fits = fits and q.size(0) == k.size(0) and all(size > 0 for size in (*q.shape, *k.shape, *v.shape))
    if not fits or q.size(1) % k.size(1):
        found = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        valid = "the same B and D everywhere, the same S in k and v, and heads of both that divide q's"
        raise ConfigError(
            "q (B, H, T, D), k (B, H_kv, S, D) and v (B, H_kv, S, D_v), no size 0", found, valid
        )
    if not q.dtype == k.dtype == v.dtype:
        found = f"{q.dtype}, {k.dtype}, {v.dtype}"
        raise ConfigError("q, k and v of the same dtype", found, "q, k and v cast to the same dtype")
