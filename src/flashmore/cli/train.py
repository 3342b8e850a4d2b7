"""`flashmore train`: train on a file of names or one long text."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Literal

from flashmore.cli.parse import defaults, parse, parse_known, refuse_ineffective, value_of
from flashmore.cli.play import open_page
from flashmore.cli.show import figures, name_cells, stdout, table
from flashmore.config import CHANGEABLE, TrainConfig
from flashmore.errors import ConfigError, FlashmoreError, Interrupted, require_valid
from flashmore.generation.options import GenerateOptions
from flashmore.ranks import rank, world_size
from flashmore.specs import model_spec
from flashmore.terminal import say, write_json

if TYPE_CHECKING:
    from flashmore.runs import Run
    from flashmore.training.resolve import Resolved
    from flashmore.training.result import TrainResult

MOST_SPLITS = 1000
FEW_TESTED = 100
"""With fewer test items, `--splits` is recommended."""
FEW_TRAINED = 1000
"""With fewer training items, a GRU often does better than the Transformer (docs/log.md)."""
SHOWN, DRAWS = 10, 200
"""Names shown at the end, and how many are drawn to count the new ones."""
MOST_PRODUCTS = 2 * 10**9
"""Most multiplications in drawing them, which take less than a second on one core."""


@dataclass(frozen=True)
class Train:
    """Train a model on a list of names, one per line, and save the run in a folder.

    With --mode text, the file is one long text, which is split into windows of --block-size characters.

    To resume an interrupted run: `flashmore train --resume RUN`. With --help, it lists what can be changed.
    """

    config: TrainConfig
    """Data, model and training. Some defaults depend on --model and --preset."""
    out: Path | None = None
    """New or empty folder for the run. If omitted, the first unused of runs/MODEL, runs/MODEL-2, …"""
    resume: Literal["auto"] | None = None
    """`auto`: resume the run with the same options and data in --out, or the newest one in runs/; start one
    if there is none."""
    splits: int = 1
    """Train on this many random splits and report how the test loss varies. Only the first run is kept."""
    open: bool = False
    """At the end, write the run's page and open it in the browser, as `flashmore play` does."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""

    def __post_init__(self) -> None:
        valid = f"a whole number from 1 to {MOST_SPLITS}"
        require_valid("splits", self.splits, 1 <= self.splits <= MOST_SPLITS, valid)
        if self.resume is not None and self.splits > 1:
            found = f"--splits {self.splits}, whose other runs are not kept"
            raise ConfigError("a single run with --resume auto", found, "omit one of the two options")


@dataclass(frozen=True)
class Resume:
    """Resume an interrupted run with its own options; only those below can change."""

    resume: Path
    """The run's folder."""
    max_steps: int | None = None
    """New total number of steps. If omitted, that of the run."""
    parallel: Literal["auto", "ddp", "fsdp"] | None = None
    """Under torchrun: how processes share the model, as in `flashmore train --help`."""
    grad_accum: int | None = None
    """Number of parts in which the gradient of a batch is computed."""
    activation_checkpointing: bool | None = None
    """Whether to recompute activations in the backward pass."""
    cpu_offload: bool | None = None
    """Whether to keep sharded weights and the optimizer in CPU memory."""
    save_seconds: float | None = None
    """Maximum seconds of training between checkpoints."""
    keep: int | None = None
    """Number of checkpoints to keep."""
    on_save_error: Literal["continue", "stop"] | None = None
    """What to do if the disk fails."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore train`."""
    command: Train | Resume
    if value_of("--resume", argv) not in (None, "auto"):
        command, others = resumed, others = parse_known(Resume, "train", argv)
        if others:
            raise ConfigError(
                "--resume with --max-steps, --json or options of how to compute and save", " ".join(others),
                f"flashmore train --resume {shlex.quote(str(resumed.resume))} [OPTIONS listed by --help]",
            )  # fmt: skip
    elif value_of("--out", argv) == "":
        raise ConfigError("a folder for --out", "an empty name", "for example --out runs/names")
    else:
        command = parse(Train, "train", argv, Train(defaults(argv)))
        refuse_ineffective(command.config, argv)

    from flashmore.training.loop import REPEAT, resume, train
    from flashmore.training.progress import ProgressLine
    from flashmore.training.session import Session
    from flashmore.training.splits import losses_of_splits, require_random_splits
    from flashmore.training.warm import compile_in_background

    if isinstance(command, Train) and command.splits > 1:
        if world_size() > 1:
            found = f"{world_size()} processes of torchrun"
            raise ConfigError("a single process for --splits", found, "flashmore train without torchrun")
        require_random_splits(command.config, command.splits)

    class Line(ProgressLine):
        """A progress line that also knows with which speed-ups later runs would be faster."""

        resolved: "Resolved | None" = None

        def started(self, session: Session) -> None:
            super().started(session)
            self.resolved = session.resolved

    with Line() as line:
        if isinstance(command, Resume):
            changes = {name: getattr(command, name) for name in CHANGEABLE}
            changes = {name: value for name, value in changes.items() if value is not None}
            result = resume(command.resume, command.max_steps, line, **changes)
        else:
            try:
                result = train(command.config, command.out, line, again=command.resume is not None)
            except Interrupted as error:
                if command.splits == 1 or error.valid.startswith(REPEAT):
                    raise
                again = f"{error.valid}; then repeat the command with that run as --out for the other splits."
                raise Interrupted(error.wanted, error.found, again) from None
    if rank():
        return 0
    losses: list[float] = []
    if isinstance(command, Train) and command.splits > 1:
        try:
            losses = list(losses_of_splits(command.config, command.splits, result.test_loss))
        except KeyboardInterrupt:
            found = f"after the first split, whose run is {result.run}"
            again = "Repeat the command with that run as --out for the other splits."
            raise Interrupted("all splits", found, again) from None
    if command.json:
        write_json(result.to_json() | ({"test_losses": losses} if losses else {}))
    else:
        _show(result, losses)
    # Not while training: even with the lowest priority, a compiler slows steps on two CPUs.
    try:
        if line.resolved is not None and compile_in_background(line.resolved) is not None:
            say("compiling in the background, with the lowest priority, for later runs")
    except FlashmoreError as error:
        say(f"no step is compiled for later runs: wanted {error.wanted}, found {error.found}")
    if isinstance(command, Train) and command.open:
        open_page(Path(result.run))
    return 0


def _show(result: "TrainResult", losses: Sequence[float]) -> None:
    from flashmore.runs import Run

    run = Run.open(Path(result.run))
    rows = table("", "")
    rows.add_row("model", result.model)
    for title, figure in figures(result, run.load_state().best_step).items():
        rows.add_row(title, figure)
    if result.leak_share is not None:
        rows.add_row("test items also in train", f"{result.leak_share:.2%}")
    if result.test_loss_unleaked is not None:
        rows.add_row("test loss of the others", f"{result.test_loss_unleaked:.4f} nats")
    if losses:
        spread = f"{mean(losses):.4f} nats, standard deviation {stdev(losses):.4f}"
        rows.add_row(f"test loss, {len(losses)} splits", spread)
    if result.ngram is not None:
        rows.add_row("best n-gram", f"{result.ngram.loss:.4f} nats on validation, order {result.ngram.order}")
    console = stdout()
    console.print(f"run {result.run}", rows)
    if result.ngram is not None and result.val_loss is not None and result.ngram.loss < result.val_loss:
        better = (
            f"an n-gram model of order {result.ngram.order} predicts the validation items better; to use it:"
        )
        console.print(f"{better} flashmore generate {shlex.quote(result.run)} --ngram")
        if len(run.split.train) < FEW_TRAINED and result.model != "gru":
            console.print("with so few items, --model gru may also predict better")
    splittable = not losses and not run.config.get("teacher")
    if splittable and 0 < (tested := len(run.split.test)) < FEW_TESTED:
        few = f"only {tested} test item{'s' * (tested > 1)}"
        console.print(f"{few}: use --splits 5 to see how much the test loss varies between splits")
    text = run.text
    if text is None:
        _show_names(run, result.parameters)
    if text is None or text.kind == "characters":  # ids alone cannot be shown
        kind = "names" if text is None else "text"
        console.print(f"to generate more {kind}: flashmore generate {shlex.quote(result.run)}")


def _show_names(run: "Run", parameters: int) -> None:
    """Draw a few names, unless the model is so large, or its context so long, that this would take long."""
    from flashmore.generation.sample import generate

    context = run.model.block_size
    positions = context if model_spec(run.model.model).kv_cache else context**2 // 2  # of each name
    draws = min(DRAWS, MOST_PRODUCTS // (parameters * positions))
    if draws < SHOWN:
        return
    made = generate(run, GenerateOptions(count=draws, max_draws=draws, repeats=True, seed=0))
    rows = table("name", "novelty")
    for text, novelty in list({name.text: name.novelty for name in made.names}.items())[:SHOWN]:
        rows.add_row(*name_cells(text, novelty))
    stdout(folded=False).print(rows, *([] if made.tally is None else [str(made.tally)]))
