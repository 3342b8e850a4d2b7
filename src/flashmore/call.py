"""The options of one attention call, the same for `explain`, `choose` and `bench attention`; no torch needed.

Shapes: q (B, H, L, D), k (B, H_kv, S, D), v (B, H_kv, S, D_v).
"""

from dataclasses import dataclass
from typing import Literal

from flashmore.errors import ConfigError
from flashmore.rules import AttentionCall, Dtype, Shape

Mask = Literal["none", "bool", "padding", "float", "float-grad"]
Pass = Literal["both", "forward", "backward"]


@dataclass(frozen=True, kw_only=True)
class CallKind:
    """Everything of a call except its sizes and dtype, of which `bench attention` takes lists."""

    n_kv_head: int | None = None
    """H_kv, the number of key and value heads; none means H."""
    gqa: bool = False
    """enable_gqa=True: H_kv may divide H."""
    value_dim: int | None = None
    """D_v, the channels per value; none means D."""
    causal: bool = False
    """is_causal=True; the default without --full, a mask or a source length."""
    full: bool = False
    """is_causal=False: every query sees every key that the mask leaves."""
    mask: Mask = "none"
    """attn_mask: none, boolean (True takes part in attention), padding (boolean, of keys: (B, 1, 1, S)),
    additive, or additive with gradient."""
    mask_dims: Literal[1, 2, 3, 4, 5] = 2
    """Dimensions of the mask: this many trailing ones of (1, B, H, L, S)."""
    mask_dtype: Dtype | None = None
    """Dtype of an additive mask; none means that of q."""
    dropout: float = 0.0
    """Probability of dropping an attention weight."""
    passes: Pass = "both"
    """forward and backward, forward alone (inference, without a graph), or backward alone."""


@dataclass(frozen=True, kw_only=True)
class CallOptions(CallKind):
    """One attention call."""

    batch_size: int = 32
    """B, the number of sequences."""
    n_head: int = 4
    """H, the number of query heads."""
    length: int = 16
    """L, the number of queries."""
    source_length: int | None = None
    """S, the number of keys; none means L. --length 1 is decoding."""
    head_dim: int = 16
    """D, the channels per head."""
    dtype: Dtype = "float32"
    """Dtype of q, k and v; under autocast, the 16-bit type."""

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

    def call(self, device: str, dims: int = 4) -> AttentionCall:
        """The call as the rules take it.

        Args:
            device: its type.
            dims: dimensions of q, k and v: the trailing ones of (1, B, H, L, D).

        Raises:
            ConfigError: options that contradict each other, or that no kernel supports.
        """
        self._require_effects()
        B, H, L, S = self.batch_size, self.n_head, self.length, self.keys

        def shape(heads: int, length: int, channels: int, dims: int = dims) -> Shape:
            return (1, B, heads, length, channels)[-dims:]

        masks = {"none": None, "padding": (B, 1, 1, S)}
        of_numbers = self.mask in ("float", "float-grad")
        return AttentionCall(
            query=shape(H, L, self.head_dim),
            key=shape(self.kv_heads, S, self.head_dim),
            value=shape(self.kv_heads, S, self.values),
            dtype=self.dtype,
            device=device,
            mask=masks.get(self.mask, shape(H, L, S, self.mask_dims)),
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
            found = f"{self.kv_heads} key and value heads, and {self.n_head} query heads"
            raise ConfigError("--gqa beside --n-kv-head", found, "--gqa as well")
        self.call("cpu")
        if not self.dropout < 1:
            raise ConfigError("a sensible --dropout", str(self.dropout), "at least 0 and below 1")
        if self.is_causal and (self.mask != "none" or self.keys != self.length):
            found = (
                f"--mask {self.mask}" if self.mask != "none" else f"{self.length} queries, {self.keys} keys"
            )
            raise ConfigError("--causal alone, with as many keys as queries", found, "no --causal")
        if self.mask == "float-grad":
            raise ConfigError(
                "a mask without gradient, since only those of q, k and v are checked",
                "--mask float-grad",
                "--mask float",
            )

    def _require_effects(self) -> None:
        if self.causal and self.full:
            raise ConfigError("--causal or --full", "both", "one of them")
        if self.mask in ("none", "padding") and self.mask_dims != 2:
            found = f"--mask {self.mask}"
            raise ConfigError("a mask for --mask-dims", found, "--mask bool, or a mask of numbers")
        if self.mask not in ("float", "float-grad") and self.mask_dtype is not None:
            raise ConfigError("--mask-dtype for a mask of numbers", f"--mask {self.mask}", "--mask float")
