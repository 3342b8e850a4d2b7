"""What `attention(q, k, v)` means.

Shapes: B batch, H heads, T queries, S keys, D channels a head. q is (B, H, T, D), k and v are (B, H, S, D).
`manual` in float64 is what right means; `flashmore.backends.accuracy` says how far from it one may be.
"""

from typing import Protocol

import torch
from torch import Tensor

from flashmore.errors import BackendUnavailable, ConfigError
from flashmore.rules.call import AttentionCall
from flashmore.specs import backend_spec, usable


class Compute(Protocol):
    """One way of computing attention."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None,
        causal: bool,
        scale: float | None,
        dropout_p: float,
    ) -> Tensor:
        """Attention over (B, H, T, D); see `attention`."""
        ...


LOADED: dict[str, Compute] = {}


def load_backend(name: str) -> Compute:
    """The function that computes attention; call it before compiling `attention`, which imports nothing then.

    Raises:
        ConfigError: there is no backend of this name.
    """
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
    """Attend from every query to the keys that it may see, computed by the named backend.

    Args:
        q: queries, (B, H, T, D), floating point.
        k: keys, (B, H, S, D), of q's dtype and device.
        v: values, (B, H, S, D_v), likewise; D_v is usually D.
        backend: a name of `flashmore.specs.backends`; there is no default, so that a result always says
            what made it.
        causal: query t sees keys 0 … t (aligned top-left, so meant for T = S).
        mask: (T, S) or (B, H, T, S), 1 where it repeats: bool, True where a query may look, or a number
            that is added to the scores. Never together with `causal`.
        scale: factor on the scores; None means 1/√D.
        dropout_p: probability of dropping a weight. It acts whenever it is above 0: pass 0 in evaluation.

    Returns:
        (B, H, T, D_v), of q's dtype. A query that may see no key gets 0 from the fused kernels and NaN from
        `manual`.

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
        # torch's texts change between releases: the reasons come from our rules
        call = describe_call(q, k, v, mask=mask, causal=causal, dropout_p=dropout_p)
        spec = backend_spec(backend)
        reasons = tuple(map(str, spec.reasons_against(call)))
        if not reasons and spec.sdp_backend is None:
            raise
        names = tuple(name for name in usable(call) if name != backend)
        raise BackendUnavailable(backend, reasons or (f"torch says: {error}",), names) from error


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
    """Put into words what decides which kernel can run on these tensors.

    Args:
        q: (…, H, L, D); k is (…, H_kv, S, D), v is (…, H_kv, S, D_v).
        mask, causal, dropout_p, gqa: as scaled_dot_product_attention takes them.

    Raises:
        ConfigError: no kernel takes them; see `AttentionCall`.
    """
    on_cuda = q.device.type == "cuda"
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
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
        needs_grad=needs_grad,
        gqa=gqa,
        unit_stride=all(t.stride(-1) == 1 for t in (q, k, v)),
        capability=torch.cuda.get_device_capability(q.device) if on_cuda else (8, 0),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> None:
    if causal and mask is not None:
        raise ConfigError("causal or a mask", "both", "one mask that says both, or causal=True alone")
    fits = q.dim() == k.dim() == v.dim() == 4 and k.shape[:3] == v.shape[:3] and q.size(3) == k.size(3)
    if not fits or q.shape[:2] != k.shape[:2] or min(*q.shape, *k.shape, *v.shape) < 1:
        raise ConfigError(
            "q (B, H, T, D), k (B, H, S, D) and v (B, H, S, D), no size 0",
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}",
            "the same B, H and D everywhere, the same S in k and v",
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ConfigError(
            "q, k and v of one dtype", f"{q.dtype}, {k.dtype}, {v.dtype}", "cast them to one dtype"
        )
