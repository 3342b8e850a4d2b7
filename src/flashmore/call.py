"""The options of one attention call, the same for `explain`, `choose` and `bench attention`; no torch needed.

Shapes: q (B, H, L, D), k (B, H_kv, S, D), v (B, H_kv, S, D_v).
"""

from dataclasses import dataclass
from typing import Literal

from flashmore.errors import ConfigError, require_valid
from flashmore.rules import AttentionCall, Dtype

Mask = Literal["none", "bool", "padding", "float", "float-grad"]
Pass = Literal["both", "forward", "backward"]


@dataclass(frozen=True, kw_only=True)
class CallKind:
    """Everything of a call except its sizes and dtype, of which `bench attention` takes lists."""

    n_kv_head: int | None = None
    """Number of key and value heads H_kv. If omitted, H."""
    gqa: bool = False
    """Set enable_gqa=True, so that H can be a multiple of H_kv."""
    value_dim: int | None = None
    """Head dimension of the values, D_v. If omitted, D."""
    causal: bool = False
    """Set is_causal=True. This is the default without --full, --mask and --source-length."""
    full: bool = False
    """Set is_causal=False: each query attends to every key that the mask allows."""
    mask: Mask = "none"
    """attn_mask: none, boolean, boolean padding (B, 1, 1, S), additive, or additive with a gradient."""
    mask_dims: Literal[1, 2, 3, 4, 5] = 2
    """Number of dimensions of the mask, the last ones of (1, B, H, L, S)."""
    mask_dtype: Dtype | None = None
    """Dtype of an additive mask. If omitted, that of q."""
    dropout: float = 0.0
    """Dropout probability on attention weights, dropout_p."""
    passes: Pass = "both"
    """Forward and backward, forward only (inference, no autograd), or backward only."""


@dataclass(frozen=True, kw_only=True)
class CallOptions(CallKind):
    """One attention call."""

    batch_size: int = 32
    """Batch size B."""
    n_head: int = 4
    """Number of query heads H."""
    length: int = 16
    """Number of queries L."""
    source_length: int | None = None
    """Number of keys S. If omitted, L. Use --length 1 for decoding."""
    head_dim: int = 16
    """Head dimension D."""
    dtype: Dtype = "float32"
    """Dtype of q, k and v. Under autocast, give the 16-bit type."""

    @property
    def is_causal(self) -> bool:
        """Whether query t sees keys 0 … t alone."""
        return self.causal or (self.source_length is None and self.mask == "none" and not self.full)

    @property
    def kv_heads(self) -> int:
        """H_kv."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def keys(self) -> int:
        """S."""
        return self.length if self.source_length is None else self.source_length

    @property
    def values(self) -> int:
        """D_v."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def mask_words(self) -> str:
        """The mask in a few words that tell two masks apart: `none`, `padding`, `bool 2-D`."""
        if self.mask in ("none", "padding"):
            return self.mask
        dtype = f" {self.mask_dtype}" if self.mask_dtype else ""
        return f"{self.mask}{dtype} {self.mask_dims}-D"

    @property
    def pairs(self) -> int:
        """The number of (L, S) matrices: one per batch item and query head."""
        return self.batch_size * self.n_head

    def call(self, device: str) -> AttentionCall:
        """The call as the rules take it.

        Args:
            device: its type.

        Raises:
            ConfigError: options that contradict each other, or that no kernel supports.
        """
        self._require_effects()
        B, H, L, S = self.batch_size, self.n_head, self.length, self.keys
        masks = {"none": None, "padding": (B, 1, 1, S)}
        of_numbers = self.mask in ("float", "float-grad")
        return AttentionCall(
            query=(B, H, L, self.head_dim),
            key=(B, self.kv_heads, S, self.head_dim),
            value=(B, self.kv_heads, S, self.values),
            dtype=self.dtype,
            device=device,
            mask=masks.get(self.mask, (1, B, H, L, S)[-self.mask_dims :]),
            mask_dtype=(self.mask_dtype or self.dtype) if of_numbers else "bool",
            mask_needs_grad=self.mask == "float-grad",
            causal=self.is_causal,
            dropout_p=self.dropout,
            needs_grad=self.passes != "forward",
            gqa=self.gqa,
        )

    def require_measurable(self) -> None:
        """Refuse what `explain` can describe, but the measurements cannot check against float64.

        Raises:
            ConfigError: what it is, and what to give instead.
        """
        if self.kv_heads != self.n_head and not self.gqa:
            found = f"{self.kv_heads} key and value heads for {self.n_head} query heads"
            raise ConfigError("--gqa with --n-kv-head", found, "add --gqa")
        self.call("cpu")
        require_valid("dropout", self.dropout, self.dropout < 1, "at least 0 and below 1")
        if self.is_causal and (self.mask != "none" or self.keys != self.length):
            found = (
                f"--mask {self.mask}" if self.mask != "none" else f"{self.length} queries, {self.keys} keys"
            )
            raise ConfigError("--causal without --mask, with as many keys as queries", found, "omit --causal")
        if self.mask == "float-grad":
            raise ConfigError(
                "a mask without a gradient; only the gradients of q, k and v are checked",
                "--mask float-grad",
                "--mask float",
            )

    def _require_effects(self) -> None:
        if self.causal and self.full:
            raise ConfigError("--causal or --full", "both", "one of them")
        if self.mask in ("none", "padding") and self.mask_dims != 2:
            found = f"--mask {self.mask}"
            raise ConfigError("a mask with --mask-dims", found, "--mask bool, float or float-grad")
        if self.mask not in ("float", "float-grad") and self.mask_dtype is not None:
            raise ConfigError("--mask-dtype with an additive mask", f"--mask {self.mask}", "--mask float")
