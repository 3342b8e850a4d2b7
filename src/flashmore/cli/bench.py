"""`flashmore bench WHAT …`: measure whole training steps, each speed-up, or the attention kernels alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from tyro.conf import Positional

from flashmore.benchmark.attention.plan import AttentionPlan
from flashmore.cli.model_config import heads_in
from flashmore.cli.parse import command, defaults, parse, refuse_ineffective, require_writable, value_of
from flashmore.cli.show import STYLE, draw_picture, stdout, table
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, Interrupted, UsageError, require_valid
from flashmore.ranks import rank
from flashmore.specs import Attention, backends, model_spec
from flashmore.terminal import Terminal, say, write, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flashmore.benchmark.report.values import Setting
    from flashmore.benchmark.variant import Timing

Record = Mapping[str, Any]
BLOCKS, ABLATION_BLOCKS = 30, 20
SECONDS, SECONDS_WITH_EACH_LEFT_OUT = 180.0, 1200.0
VARIED = ("--attention", "--dtype", "--optimizer", "--lr-schedule")
"""Options that the ablation sets for each variant."""
PADDING = 3
"""Characters between two columns of a table."""
FORMS = (".png", ".svg", ".pdf")
WRITES = ("--out", "--picture")
CHECK = "check"
WHAT = {
    "step": "whole training steps with two or more attention backends",
    "ablation": "training steps with the speed-ups added one by one",
    "attention": "the attention kernels only: time, memory and error by sequence length",
    CHECK: "regressions against an earlier record, for CI",
}
HELP = """usage: flashmore bench WHAT [OPTIONS]

Benchmark training steps, attention backends and speed-ups on this machine.

"""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Output options of a benchmark."""

    out: Path | None = None
    """Write the record to this file."""
    picture: Path | None = None
    """Save a plot to this file: .png, .svg or .pdf."""
    json: bool = False
    """Print the record to stdout as JSON, and nothing else."""
    equivalence: float = 3.0
    """Differences up to this percentage count as no difference."""

    def __post_init__(self) -> None:
        require_percentage(self.equivalence)
        require_writable("--out", self.out)
        require_writable("--picture", self.picture, endings=FORMS)


Measured = tuple[Record, Outputs, "Callable[[Record], Figure]"]


@dataclass(frozen=True)
class BenchStep(Outputs):
    """Time whole training steps with two or more attention backends, on the same model, data and seed.

    Each backend is first checked against manual attention in float64, and skipped if its error is too large
    for its precision. The variants then alternate in short blocks, so that drift affects all of them equally.
    Under torchrun, the processes share each batch, and the share of communication is measured as well.
    """

    config: TrainConfig
    """Data, model and training. Some defaults depend on --model and --preset."""
    variants: tuple[Attention, ...] = ("manual", "flash")
    """Attention backends; the first is the baseline. A name can be repeated."""
    lengths: tuple[int, ...] = ()
    """Sequence lengths T, filled with concatenated names. If omitted, padded names, as in training."""
    blocks: int = BLOCKS
    """Blocks per variant; use at least 20."""


@dataclass(frozen=True)
class BenchAblation(Outputs):
    """Add the speed-ups to the plain training loop one by one, and time each variant.

    Speed-ups must first reproduce the gradients of the plain loop, and exact ones its losses; those that do
    not are skipped. The variants then alternate in short blocks, so that drift affects all of them equally.
    --speedups selects the speed-ups to add; `auto` and `all` add every one that works here. Under torchrun,
    the processes share each batch, and the share of communication is measured as well.
    """

    config: TrainConfig
    """Data, model and training. Some defaults depend on --model and --preset."""
    leave_one_out: bool = False
    """Also time the full set without each speed-up in turn."""
    blocks: int = ABLATION_BLOCKS
    """Blocks per variant; use at least 20."""
    seconds: float | None = None
    """Approximate time limit in seconds. If omitted, 180, or 1,200 with --leave-one-out.
    Speed-ups that would take too long to compile are skipped, with a note."""

    def __post_init__(self) -> None:
        super().__post_init__()
        holds = self.seconds is None or 0 < self.seconds < float("inf")
        require_valid("seconds", self.seconds, holds, "above 0, for example 180")


@dataclass(frozen=True)
class BenchAttention(Outputs):
    """Measure time, memory and error of every attention backend by sequence length.

    The result shows from which length on fused attention is faster. All combinations of the given values are
    measured: `--head-dim 16 64 --causal --full` gives four settings.
    """

    plan: AttentionPlan
    from_config: Path | None = None
    """Take the number of heads and the head dimension from a Hugging Face model's config.json."""


def require_percentage(equivalence: float) -> None:
    """Refuse an --equivalence that is not between 0 and 100."""
    require_valid("equivalence", f"{equivalence:g}", 0 < equivalence < 100, "a percentage, such as 3")


def main(argv: Sequence[str]) -> int:
    """Run `flashmore bench`."""
    if not argv or argv[0] in ("-h", "--help"):
        write(HELP + "".join(f"  {what:<10} {does}\n" for what, does in WHAT.items()))
        write("\nRun `flashmore bench WHAT --help` for the options.\n")
        return 0 if argv else 2
    what, *rest = argv
    if what not in WHAT:
        raise UsageError("a benchmark: flashmore bench WHAT", f"'{what}'", ", ".join(WHAT))
    return _check(rest) if what == CHECK else _give(*MEASURES[what](rest))


def _step(argv: Sequence[str]) -> Measured:
    command = parse(BenchStep, "bench step", argv, BenchStep(defaults(argv, "makemore")))
    if model_spec(command.config.model).attends:  # the others are refused as such
        refuse_ineffective(
            command.config, argv, ("--speedups", "--eval-interval", "--log-interval", "--weight")
        )
    if command.config.attention != "auto":
        option = f"--attention {command.config.attention}"
        raise ConfigError("attention backends to compare", option, "--variants manual flash")
    if not command.variants:
        raise ConfigError("--variants to compare", "none", ", ".join(("auto", *backends())))

    from flashmore.benchmark.plots import step_plot
    from flashmore.benchmark.step.bench import bench_steps

    with BlockBar(command.blocks) as bar:
        record = bench_steps(
            command.config,
            command.variants if value_of("--variants", argv) is not None else None,
            command.lengths,
            shrink_batch=value_of("--batch-size", argv) is None,
            timing=bar.timing(command.equivalence),
        )
    return record, command, step_plot


def _ablation(argv: Sequence[str]) -> Measured:
    command = parse(BenchAblation, "bench ablation", argv, BenchAblation(defaults(argv, "makemore")))
    refuse_ineffective(command.config, argv, ("--eval-interval", "--log-interval", "--weight", *VARIED))

    from flashmore.benchmark.ablation.bench import ablate
    from flashmore.benchmark.plots import ablation_plot

    usual = SECONDS_WITH_EACH_LEFT_OUT if command.leave_one_out else SECONDS
    with BlockBar(command.blocks) as bar:
        record = ablate(
            command.config,
            leave_one_out=command.leave_one_out,
            seconds=usual if command.seconds is None else command.seconds,
            timing=bar.timing(command.equivalence),
        )
    return record, command, ablation_plot


def _attention(argv: Sequence[str]) -> Measured:
    plan = AttentionPlan()
    if sizes := heads_in(argv):
        plan = replace(plan, **sizes | {name: (sizes[name],) for name in ("n_head", "head_dim")})  # type: ignore[arg-type]
    command = parse(BenchAttention, "bench attention", argv, BenchAttention(plan))

    from flashmore.benchmark.attention.bench import bench_attention
    from flashmore.benchmark.plots import UNITS, attention_plot

    record = bench_attention(command.plan, equivalence=command.equivalence, say=say)
    return record, command, lambda record: attention_plot(record, *UNITS)


MEASURES: dict[str, Callable[[Sequence[str]], Measured]] = {
    "step": _step,
    "ablation": _ablation,
    "attention": _attention,
}


@command("bench check")
def _check(record: Positional[Path | None] = None, *, baseline: Path, equivalence: float = 3.0) -> int:
    """Repeat the measurement of a record. Exit with 1 if anything got slower, with 0 otherwise.

    The two measurements do not alternate: run nothing else on the machine, and set --equivalence to the
    difference between two runs of the same code. The device and the settings must be those of the record.

    Args:
        record: Compare this record instead of measuring again.
        baseline: Record to compare with, written by `flashmore bench … --out` or `flashmore choose --out`.
        equivalence: Differences up to this percentage count as no difference.
    """
    require_percentage(equivalence)

    from flashmore.benchmark.check import check
    from flashmore.measuring.result import read_record

    before = read_record(baseline)
    now = read_record(record) if record else _measured_again(before)
    setting, slower = check(before, now, equivalence)
    console = stdout()
    _show_setting(console, setting)
    _show_warnings(console, now)
    if not now["complete"]:
        return Interrupted.exit_code
    return 1 if slower else 0


def _measured_again(baseline: Record) -> Record:
    """A new record by the command that made the baseline; nothing is written."""
    from flashmore.benchmark.check import MACHINE, require_same
    from flashmore.cli import choose
    from flashmore.measuring.environment import environment
    from flashmore.training.resolve import resolve_device

    here = environment(resolve_device(baseline["environment"]["device"]))
    require_same("machine", {name: baseline["environment"][name] for name in MACHINE}, here)
    words = baseline["command"][1:]
    words = [word for word, before in zip(words, ["", *words], strict=False) if before not in WRITES]
    words = [word for word in words if word.partition("=")[0] not in (*WRITES, "--json")]
    if words[:1] == ["choose"]:
        return choose.measured([*words[1:], "--fresh"])[0]
    if words[:1] != ["bench"] or words[1:2] == [] or words[1] not in MEASURES:
        found = " ".join(baseline["command"])[:200] or "no command"
        valid = "a RECORD to compare with the baseline"
        raise UsageError("a baseline written by `flashmore bench` or `flashmore choose`", found, valid)
    return MEASURES[words[1]](words[2:])[0]


def _give(record: Record, outputs: Outputs, draw: "Callable[[Record], Figure]") -> int:
    """Print, write and plot a record according to the options; returns the exit code.

    Of several ranks, rank 0 does so. The others end with 0 even if they were interrupted: torchrun would
    otherwise stop rank 0 before it is done.
    """
    if rank():
        return 0
    from flashmore.measuring.result import write_record

    for note in _notes(record):
        say(f"note: {note}")
    if outputs.json:
        write_json(record)
    else:
        show(record)
    if outputs.out is not None:
        write_record(record, outputs.out)
        say(f"record: {outputs.out}")
    if outputs.picture is not None:
        draw_picture(outputs.picture, lambda: draw(record))
    if not record["complete"]:
        say("interrupted: the measurements so far are kept")
        return Interrupted.exit_code
    return 0


def _notes(record: Record) -> list[str]:
    contexts = (record, *record.get("further_contexts", ()))
    return [note for context in contexts for note in context.get("notes", ())]


def show(record: Record) -> None:
    """Print a record's tables, conclusions, remarks and warnings, but not the notes, which are for stderr."""
    from flashmore.benchmark.report.summaries import summarize

    console, summary, unsaid = stdout(), summarize(record), ["", *_notes(record)]
    for setting in summary.settings:
        _show_setting(console, setting, unsaid)
    for line in summary.remarks:
        if line not in unsaid:
            console.print(line)
    _show_warnings(console, record)


def _show_warnings(console: Terminal, record: Record) -> None:
    for warning in record["warnings"]:
        console.print(f"warning: {warning['code']}: {warning['message']}", f"  {warning['advice']}")


def _show_setting(console: Terminal, setting: "Setting", unsaid: Sequence[str] = ("",)) -> None:
    columns = setting.table.columns
    cells = [dict(zip(columns, columns, strict=True)), *setting.table.rows]
    for column in setting.table.dispensable:
        width = sum(max(len(row[name]) for row in cells) + PADDING for name in columns)
        if column in columns and width >= console.width:
            columns.remove(column)
    numbers = tuple(column for column in columns if column not in setting.table.words)
    rows = table(*columns, numbers=numbers)
    rows.box = SIMPLE_HEAD
    for row in setting.table.rows:
        rows.add_row(*(Text(row[column], STYLE.get(row[column], "")) for column in columns))
    console.print("", setting.table.caption)
    if setting.table.rows:
        console.print(rows)
    for line in (*setting.remarks, setting.conclusion):
        if line not in unsaid:
            console.print(line)


class BlockBar:
    """A context manager with a progress bar on stderr, updated after every one of the rounds."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(compact=True),
            console=Terminal(stderr=True),
            transient=True,
        )
        self.task = self.progress.add_task("", total=blocks, start=False)

    def say(self, what: str) -> None:
        """Show the current activity."""
        self.progress.reset(self.task, description=what)
        if not self.progress.console.file.isatty():
            say(what)

    def timing(self, equivalence: float = 3.0) -> "Timing":
        """The rounds, which update the bar."""
        from flashmore.benchmark.variant import Timing

        done = partial(self.progress.update, self.task)
        return Timing(self.blocks, equivalence, self.say, lambda rounds: done(completed=rounds))

    def __enter__(self) -> "BlockBar":
        if self.progress.console.file.isatty():
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress.console.file.isatty():  # elsewhere it was not started, and stopping prints a line
            self.progress.stop()
