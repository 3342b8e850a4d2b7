"""`flashmore explain`: which attention kernel runs, and every reason why the others do not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Group

from flashmore.call import CallOptions
from flashmore.cli.model_config import heads_in
from flashmore.cli.parse import parse, value_of
from flashmore.cli.show import stdout, table
from flashmore.errors import ConfigError
from flashmore.specs import model_spec
from flashmore.terminal import write_json

if TYPE_CHECKING:
    from flashmore.backends.explain import Explanation


@dataclass(frozen=True)
class Explain:
    """Show which attention backends can run, why the others cannot, and which one PyTorch picks.

    Shapes: q (B, H, L, D), k (B, H_kv, S, D), v (B, H_kv, S, D_v). If the device is present, every backend
    that needs no compilation is run; otherwise the answer comes from known rules only.
    """

    call: CallOptions
    run: Path | None = None
    """Take shape, dtype, device and dropout from a run."""
    from_config: Path | None = None
    """Take the number of heads and the head dimension from a Hugging Face model's config.json."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the call, which need not be present; `auto` uses a GPU if there is one."""
    capability: str | None = None
    """Compute capability of a GPU that is not present, such as 9.0 for an H100. If omitted, 8.0."""
    non_contiguous: bool = False
    """Make the last dimension of q, k and v non-contiguous."""
    deterministic: bool = False
    """Assume torch.use_deterministic_algorithms(True)."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore explain`."""
    command = parse(Explain, "explain", argv, _defaults(argv))

    from flashmore.backends.explain import explain, is_present
    from flashmore.training.resolve import resolve_device

    device = resolve_device("auto").type if command.device == "auto" else command.device
    call = replace(
        command.call.call(device),
        unit_stride=not command.non_contiguous,
        capability=(8, 0) if command.capability is None else _capability(command.capability),
        deterministic=command.deterministic,
    )
    if command.capability is not None and command.device != "cuda":
        found = f"--device {command.device}"
        raise ConfigError("--device cuda with --capability", found, "--device cuda, or omit --capability")
    if command.capability is not None and is_present("cuda"):
        raise ConfigError("--capability with a GPU that is not present", "a GPU", "omit --capability")
    explanation = explain(call)
    if command.json:
        write_json(explanation.to_json())
    else:
        _show(explanation)
    return 0


def _defaults(argv: Sequence[str]) -> Explain:
    run, sizes = value_of("--run", argv), heads_in(argv)
    if run and sizes:
        raise ConfigError("--run or --from-config", "both", "only one of them")
    return _of_run(Path(run)) if run else Explain(CallOptions(**sizes))  # type: ignore[arg-type]


def _of_run(path: Path) -> Explain:
    from flashmore.runs import Run
    from flashmore.training.folders import config_of

    run = Run.open(path)
    if not model_spec(run.model.model).attends:
        raise ConfigError(
            "a run of a transformer, which has attention", f"a {run.model.model}", "a run of a transformer"
        )
    config = config_of(run)
    call = CallOptions(
        batch_size=config.batch_size,
        n_head=run.model.n_head,
        length=run.model.block_size,
        head_dim=run.model.n_embd // run.model.n_head,
        dtype=config.dtype,
        dropout=run.model.attention_dropout,
    )
    return Explain(call, device=config.device)


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
    rows = table("backend", "usable", "reasons and notes (what to change)")
    chosen = explanation.how
    for answer in explanation.backends:
        notes = (f"note: {caution}" for caution in answer.cautions)
        words = (answer.about, *notes) if answer.usable else answer.reasons
        rows.add_row(answer.name, "yes" if answer.usable else "no", Group(*words))
        if answer.name == default:
            chosen = f"{default} ({answer.about}), {explanation.how}"
    console = stdout()
    console.print(", ".join(fact for fact, holds in facts.items() if holds), rows)
    console.print(f"PyTorch picks: {chosen}")
    if explanation.line is not None:
        console.print("", "to force one kernel:", *explanation.line.split("\n"))
