"""`flashmore explain`: which attention kernel runs, and every reason why the others do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Group

from flashmore.cli.parse import options_in, parse, value_of
from flashmore.cli.show import stdout, table
from flashmore.errors import ConfigError
from flashmore.rules import AttentionCall, Dtype, Shape
from flashmore.specs import model_spec
from flashmore.terminal import write_json

if TYPE_CHECKING:
    from flashmore.backends.explain import Explanation


@dataclass(frozen=True)
class Explain:
    """Explain which attention backends can run, every reason against the others, and which one PyTorch picks.

    Shapes: q (B, H, L, D), k (B, H_kv, S, D), v (B, H_kv, S, D_v). If the device is present every backend is
    run; otherwise only the rules are used.
    """

    run: Path | None = None
    """A run's folder: its shape, dtype, device and dropout, and causal, become the defaults."""
    batch_size: int = 32
    """B, the number of sequences."""
    n_head: int = 4
    """H, the number of query heads."""
    n_kv_head: int | None = None
    """H_kv, the number of key and value heads; none means H."""
    length: int = 16
    """L, the number of queries."""
    source_length: int | None = None
    """S, the number of keys; none means L."""
    head_dim: int = 16
    """D, the channels per head."""
    value_dim: int | None = None
    """D_v, the channels per value; none means D."""
    dims: Literal[2, 3, 4, 5] = 4
    """Dimensions of q, k and v: 3 omits B, 2 omits B and H, 5 adds a leading 1."""
    dtype: Dtype = "float32"
    """Dtype of q, k and v; under autocast, the 16-bit type."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` selects a GPU if there is one; for an absent device only the rules are used."""
    capability: str | None = None
    """Compute capability of an absent GPU, such as 9.0 for an H100; none means 8.0."""
    mask: Literal["none", "bool", "float", "float-grad"] = "none"
    """attn_mask: none, boolean (True takes part in attention), additive, or additive with gradient."""
    mask_dims: Literal[1, 2, 3, 4, 5] = 2
    """Dimensions of the mask: this many trailing ones of (1, B, H, L, S)."""
    mask_dtype: Dtype | None = None
    """Dtype of an additive mask; none means that of q."""
    dropout: float = 0.0
    """Probability of dropping an attention weight."""
    causal: bool = False
    """is_causal=True."""
    gqa: bool = False
    """enable_gqa=True: H_kv may divide H."""
    training: bool = False
    """A backward pass follows; the default unless --inference is given."""
    inference: bool = False
    """No backward pass follows."""
    non_contiguous: bool = False
    """The last dimension of q, k and v is not contiguous."""
    deterministic: bool = False
    """torch.use_deterministic_algorithms(True) is on."""
    json: bool = False
    """Print one JSON document on stdout and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore explain`."""
    run = value_of("--run", argv)
    command = parse(Explain, "explain", argv, _of_run(Path(run)) if run else None)
    _require_effects(command, options_in(argv))

    from flashmore.backends.explain import explain, is_present
    from flashmore.training.resolve import resolve_device

    device = resolve_device("auto").type if command.device == "auto" else command.device
    call = _call(command, device)
    if command.capability is not None and is_present("cuda"):
        raise ConfigError("--capability only for a GPU that is not here", command.capability, "leave it out")
    explanation = explain(call)
    if command.json:
        write_json(explanation.to_json())
    else:
        _show(explanation)
    return 0


def _of_run(path: Path) -> Explain:
    from flashmore.runs import Run
    from flashmore.training.session import config_of

    run = Run.open(path)
    if not model_spec(run.model.model).attends:
        raise ConfigError("a run of a model with attention", f"a {run.model.model}", "a run of a transformer")
    config = config_of(run)
    return Explain(
        batch_size=config.batch_size,
        n_head=run.model.n_head,
        length=run.model.block_size,
        head_dim=run.model.n_embd // run.model.n_head,
        dtype=config.dtype,
        device=config.device,
        dropout=run.model.attention_dropout,
        causal=True,
    )


def _require_effects(command: Explain, given: set[str]) -> None:
    """Refuse contradictory options, and those that would have no effect."""
    if command.training and command.inference:
        raise ConfigError("--training or --inference", "both", "one of them, or none for training")
    mask = f"--mask {command.mask}"
    if command.mask == "none" and "--mask-dims" in given:
        raise ConfigError("a mask for --mask-dims", mask, "--mask bool, or another mask")
    if command.mask in ("none", "bool") and command.mask_dtype is not None:
        raise ConfigError("--mask-dtype for a mask of numbers", mask, "--mask float")
    if command.capability is not None and command.device != "cuda":
        found = f"--device {command.device}"
        raise ConfigError("--device cuda beside --capability", found, "--device cuda, or no --capability")


def _call(command: Explain, device: str) -> AttentionCall:
    """The call that the options describe."""
    B, H, L, D = command.batch_size, command.n_head, command.length, command.head_dim
    H_kv = H if command.n_kv_head is None else command.n_kv_head
    S = L if command.source_length is None else command.source_length
    D_v = D if command.value_dim is None else command.value_dim

    def shape(heads: int, length: int, channels: int, dims: int = command.dims) -> Shape:
        return (1, B, heads, length, channels)[-dims:]

    of_numbers = command.mask in ("float", "float-grad")
    return AttentionCall(
        query=shape(H, L, D),
        key=shape(H_kv, S, D),
        value=shape(H_kv, S, D_v),
        dtype=command.dtype,
        device=device,
        mask=None if command.mask == "none" else shape(H, L, S, command.mask_dims),
        mask_dtype=(command.mask_dtype or command.dtype) if of_numbers else "bool",
        mask_needs_grad=command.mask == "float-grad",
        causal=command.causal,
        dropout_p=command.dropout,
        needs_grad=not command.inference,
        gqa=command.gqa,
        unit_stride=not command.non_contiguous,
        capability=(8, 0) if command.capability is None else _capability(command.capability),
        deterministic=command.deterministic,
    )


def _capability(text: str) -> tuple[int, int]:
    major, dot, minor = text.partition(".")
    if not (major.isdecimal() and dot and minor.isdecimal()):
        raise ConfigError("a compute capability", f"'{text}'", "MAJOR.MINOR, such as 8.0 or 9.0")
    return int(major), int(minor)


def _show(explanation: "Explanation") -> None:
    call, default = explanation.call, explanation.default
    facts = {
        f"q {call.query}, k {call.key}, v {call.value}": True,
        f"{call.dtype} on {call.device}": True,
        "training" if call.needs_grad else "inference": True,
        "causal": call.causal,
        f"dropout {call.dropout_p}": call.dropout_p,
        "grouped heads": call.gqa,
        f"mask {call.mask} of {call.mask_dtype}": call.mask is not None,
        "the mask needs a gradient": call.mask_needs_grad,
        "last dimension not contiguous": not call.unit_stride,
        "deterministic": call.deterministic,
    }
    rows = table("backend", "usable", "why not, or what to know (what to change)")
    chosen = explanation.how
    for answer in explanation.backends:
        notes = (f"note: {caution}" for caution in answer.cautions)
        words = (answer.about, *notes) if answer.usable else answer.reasons
        rows.add_row(answer.name, "yes" if answer.usable else "no", Group(*words))
        if answer.name == default:
            chosen = f"{default} ({answer.about}), {explanation.how}"
    console = stdout()
    console.print(", ".join(fact for fact, holds in facts.items() if holds), rows)
    console.print(f"PyTorch's own choice: {chosen}")
    if explanation.line is not None:
        console.print("", "to have one kernel and no other:", *explanation.line.split("\n"))
