"""What a finished run says of itself."""

from dataclasses import asdict, dataclass
from typing import Any

from flashmore.errors import RunError
from flashmore.files import INTACT
from flashmore.runs import Run
from flashmore.runs.records import convert
from flashmore.specs import backends, model_spec


@dataclass(frozen=True)
class TrainResult:
    """Sizes, time and losses of a finished run; losses are in nats a character, EOS included.

    Raises:
        ValueError: numbers that no training run has.
    """

    run: str
    """The run's folder."""
    model: str
    attention: str | None
    """The backend that ran; None for a model without attention."""
    parameters: int
    steps: int
    train_seconds: float
    """Evaluation and saving apart."""
    step_ms: float
    """Median over the stretches between two lines of the log."""
    val_loss: float | None
    """Of the weights that the test loss is of; None without a validation part."""
    test_loss: float | None
    """Of the best weights by validation, or of the last ones without a validation part."""
    leak_share: float | None = None
    """With makemore's split: the share of test items that stand in the training part too."""
    test_loss_unleaked: float | None = None
    """With makemore's split: the test loss over the items that do not."""

    def __post_init__(self) -> None:
        losses = (self.val_loss, self.test_loss, self.test_loss_unleaked)
        if min(self.train_seconds, self.step_ms, *(loss for loss in losses if loss is not None)) < 0:
            raise ValueError("a time or a loss below 0")

    def to_json(self) -> dict[str, Any]:
        """Plain values; the two fields of makemore's split only where they mean something."""
        values = asdict(self)
        if self.leak_share is None:
            del values["leak_share"], values["test_loss_unleaked"]
        return values


def result_of(run: Run) -> TrainResult | None:
    """Read the result of a run; None while there is none, and when the run has gone on since.

    Raises:
        RunError: it was altered, or is none of this run.
        StorageError: it cannot be read.
    """
    record = run.read_result()
    if record is None:
        return None
    wanted = f"the result of the run {run.path}"
    complete = {"leak_share": None, "test_loss_unleaked": None} | record
    result = convert(complete, TrainResult, wanted)
    facts = {"model": run.model.model, "leak_share": run.split.leak_share}
    odd = [name for name, value in facts.items() if getattr(result, name) != value]
    if (result.attention in backends()) != model_spec(run.model.model).attends:
        odd.append("attention")
    done = run.load_state("last").step
    if odd or not 1 <= result.steps <= done:
        raise RunError(wanted, f"another {', '.join(odd) or 'number of steps'} than the run has", INTACT)
    return result if result.steps == done else None
