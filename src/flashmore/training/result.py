"""The result of a finished run."""

from dataclasses import asdict, dataclass
from typing import Any

from flashmore.errors import RunError
from flashmore.files import INTACT
from flashmore.models.ngram import NgramLoss
from flashmore.runs import Run
from flashmore.runs.records import convert
from flashmore.specs import backends, model_spec

NGRAM_ITEMS = 50_000


@dataclass(frozen=True)
class TrainResult:
    """Sizes, time and losses of a finished run; losses are in nats per character, EOS included.

    Raises:
        ValueError: values that no training run can have.
    """

    run: str
    """The run's folder."""
    model: str
    attention: str | None
    """The backend that ran; None for a model without attention."""
    parameters: int
    steps: int
    """0 for an imported model."""
    train_seconds: float
    """Excluding evaluation and saving."""
    step_ms: float
    """Median over the log intervals."""
    val_loss: float | None
    """Of the same weights as the test loss; None without a validation part."""
    test_loss: float | None
    """Of the weights with the best validation loss, or the last ones without a validation part."""
    leak_share: float | None = None
    """With makemore's split: the share of test items that are also in the training part."""
    test_loss_unleaked: float | None = None
    """With makemore's split: the test loss over the other test items."""
    ngram: NgramLoss | None = None
    """The validation loss of the best n-gram, for at most `NGRAM_ITEMS` training items."""

    def __post_init__(self) -> None:
        losses = (self.val_loss, self.test_loss, self.test_loss_unleaked)
        if min(self.train_seconds, self.step_ms, *(loss for loss in losses if loss is not None)) < 0:
            raise ValueError("a time or a loss below 0")

    def to_json(self) -> dict[str, Any]:
        """JSON values; those of makemore's split and of the n-gram only where they apply."""
        left_out = {"ngram"} if self.ngram is None else set()
        if self.leak_share is None:
            left_out |= {"leak_share", "test_loss_unleaked"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def result_of(run: Run) -> TrainResult | None:
    """Read the result of a run; None if there is none, or if it is not of the newest intact checkpoint.

    Raises:
        RunError: it was altered, or belongs to another run.
        StorageError: it cannot be read.
    """
    record = run.read_result()
    if record is None:
        return None
    wanted = f"the result of the run {run.path}"
    optional = dict.fromkeys(("leak_share", "test_loss_unleaked", "ngram"))
    result = convert(optional | record, TrainResult, wanted)
    facts = {"model": run.model.model, "leak_share": run.split.leak_share}
    odd = [name for name, value in facts.items() if getattr(result, name) != value]
    if (result.attention in backends()) != model_spec(run.model.model).attends:
        odd.append("attention")
    done = run.load_state().step
    if odd or result.steps < min(1, done):
        raise RunError(wanted, f"another {', '.join(odd) or 'number of steps'} than the run has", INTACT)
    return result if result.steps == done else None


def require_result(run: Run) -> TrainResult:
    """The result of a finished run; a RunError for an unfinished one, and as from `result_of`."""
    if (result := result_of(run)) is None:
        found, valid = (
            "an interrupted run, which has no result yet",
            f"finish it first: {run.resume_command()}",
        )
        raise RunError(f"a finished run in {run.path}", found, valid)
    return result
