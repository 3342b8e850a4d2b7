"""The description of a call of scaled_dot_product_attention; does not import torch."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, get_args

from flashmore.errors import ConfigError

Device = Literal["cpu", "cuda", "mps"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
DEVICES: tuple[Device, ...] = get_args(Device)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
MASK_DTYPES = ("bool", *DTYPES, "uint8", "int8", "int16", "int32", "int64")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class AttentionCall:
    """The properties of a scaled_dot_product_attention call that determine which kernels can run.

    Shapes: query (…, H, L, D), key (…, H_kv, S, D), value (…, H_kv, S, D_v), two dimensions or more. The
    leading dimensions broadcast, and with `gqa` H_kv may divide H.

    Raises:
        ConfigError: a call that no kernel supports on any device: a size below 1, incompatible shapes, a mask
            that does not broadcast to the (…, H, L, S) scores, an unknown dtype or device, or a dropout
            outside [0, 1].
    """

    query: Shape
    key: Shape
    value: Shape
    dtype: str = "float32"
    device: str = "cpu"
    mask: Shape | None = None
    """Its shape."""
    mask_dtype: str = "bool"
    mask_needs_grad: bool = False
    """The mask has requires_grad=True, even if no backward pass follows."""
    mask_unit_stride: bool = True
    """The last dimension of the mask is contiguous."""
    causal: bool = False
    dropout_p: float = 0.0
    needs_grad: bool = True
    """Training: a backward pass follows."""
    gqa: bool = False
    """`enable_gqa=True`."""
    unit_stride: bool = True
    """The last dimension of q, k and v has stride 1."""
    capability: tuple[int, int] = (8, 0)
    """CUDA compute capability; (9, 0) is an H100."""
    deterministic: bool = False
    """`torch.use_deterministic_algorithms(True)` is on."""

    def __post_init__(self) -> None:
        _require_known("device", self.device, DEVICES)
        _require_known("dtype of q, k and v", self.dtype, DTYPES)
        _require_known("dtype of the mask", self.mask_dtype, MASK_DTYPES)
        if not 0 <= self.dropout_p <= 1:
            raise ConfigError("a dropout from 0 to 1", f"{self.dropout_p}", "0 for none, 0.1 for a little")
        if self.mask_needs_grad and (self.mask is None or self.mask_dtype not in DTYPES):
            raise ConfigError(
                "a mask of floating-point numbers, where the mask needs a gradient",
                "no mask" if self.mask is None else f"a mask of {self.mask_dtype}",
                "a mask of " + ", ".join(DTYPES),
            )
        shapes = {"query": self.query, "key": self.key, "value": self.value}
        for name, shape in shapes.items():
            if len(shape) < 2 or min(shape) < 1:
                wanted = f"a {name} of at least two dimensions, each at least 1"
                raise ConfigError(wanted, f"{shape}", "(B, H, T, D)")
        if self.key[-1] != self.query[-1] or self.value[-2] != self.key[-2]:
            raise ConfigError(
                "query (…, L, D), key (…, S, D), value (…, S, D_v)",
                f"{self.query}, {self.key}, {self.value}",
                "the same D in query and key, the same S in key and value",
            )
        scores = (*self._scores_lead(), self.length, self.source_length)
        if self.mask is not None and _broadcast(self.mask, scores) != scores:
            valid = f"{scores[-2:]} or {scores}, with 1 where it repeats"
            raise ConfigError(f"a mask that fits the scores, {scores}", f"{self.mask}", valid)

    @property
    def head_dim(self) -> int:
        """D, of q and k."""
        return self.query[-1]

    @property
    def value_dim(self) -> int:
        """D_v."""
        return self.value[-1]

    @property
    def length(self) -> int:
        """L, the number of queries."""
        return self.query[-2]

    @property
    def source_length(self) -> int:
        """S, the number of keys."""
        return self.key[-2]

    @property
    def four_dimensional(self) -> bool:
        """Whether q, k and v are all (B, H, T, D)."""
        return len(self.query) == len(self.key) == len(self.value) == 4

    @property
    def leads_equal(self) -> bool:
        """Whether q, k and v have the same batch size and the same number of heads."""
        return self.query[:-2] == self.key[:-2] == self.value[:-2]

    @property
    def grouped(self) -> bool:
        """Whether the batch sizes are equal and `gqa` lets the heads differ."""
        return self.gqa and self.query[:-3] == self.key[:-3] == self.value[:-3]

    def _scores_lead(self) -> Shape:
        """The leading dimensions of q @ kᵀ, after grouped heads are repeated."""
        q, k, v = self.query[:-2], self.key[:-2], self.value[:-2]
        found = f"{self.query}, {self.key}, {self.value}"
        if self.gqa:
            if min(len(q), len(k), len(v)) < 1 or q[-1] % k[-1] or q[-1] % v[-1]:
                raise ConfigError(
                    "with grouped heads (enable_gqa), heads of k and v that divide q's heads",
                    found,
                    "(B, H, L, D) and (B, H_kv, S, D), where H_kv divides H",
                )
            k, v = (*k[:-1], q[-1]), (*v[:-1], q[-1])
        scores = _broadcast(q, k)
        if scores is None or _broadcast(scores, v) is None:
            raise ConfigError(
                "batch sizes and heads of q, k and v that are equal or 1",
                found,
                "the same sizes everywhere, or grouped heads (enable_gqa) where k's heads divide q's",
            )
        return scores


def _require_known(what: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ConfigError(f"a known {what}", f"'{found}'", ", ".join(known))


def _broadcast(one: Shape, other: Shape) -> Shape | None:
    """The shape that two shapes broadcast to; None if they do not."""
    pairs = list(zip_longest(reversed(one), reversed(other), fillvalue=1))
    if any(first != second and 1 not in (first, second) for first, second in pairs):
        return None
    return tuple(second if first == 1 else first for first, second in reversed(pairs))
