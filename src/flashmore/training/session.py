"""A training run: its state in memory, and its folder."""

import math
from dataclasses import dataclass, field, replace

from flashmore.config import TrainConfig
from flashmore.errors import FlashmoreError, TrainingFailed
from flashmore.parallel import Ranks, own_share, whole_tensor
from flashmore.runs import Run, State, Unevaluated
from flashmore.runs.metrics import MetricsLog
from flashmore.training.corpus import Datasets
from flashmore.training.resolve import Resolved
from flashmore.training.saving import Saver
from flashmore.training.trainer import Trainer


@dataclass
class Session:
    """One training run: its state in memory and its folder."""

    run: Run
    resolved: Resolved
    datasets: Datasets
    """The data; the trainer has the training part."""
    trainer: Trainer
    metrics: MetricsLog | None
    """None on every rank but 0, which alone writes."""
    best_loss: float | None = None
    """Lowest validation loss so far, in nats per character."""
    best_step: int | None = None
    """The step at which it was measured."""
    train_seconds: float = 0.0
    """Training time, excluding evaluation and saving."""
    unevaluated: Unevaluated | None = None
    """The last log line, if its evaluation was interrupted."""
    saver: Saver = field(init=False)

    def __post_init__(self) -> None:
        self.saver = Saver(self.run, self.metrics, self.config, self.trainer.done)

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not improved for `patience` evaluations."""
        return self.finished and self.trainer.done < self.config.max_steps

    @property
    def finished(self) -> bool:
        """Whether no more steps are to be made."""
        return is_finished(self.config, self.trainer.done, self.best_step)

    @property
    def config(self) -> TrainConfig:
        """The resolved config."""
        return self.resolved.config

    def save(self) -> None:
        """Begin to save a checkpoint, from which `resumed` continues bit for bit.

        Raises:
            TrainingFailed: a weight is not finite; the previous checkpoints are kept.
            StorageError: as from `Saver`.
        """
        weights, optimizer = self.trainer.weights(), self.trainer.step.state_dict()
        # Several times faster than `isfinite`, because it writes no tensor.
        own = map(own_share, weights.values())
        extremes = [bound for value in own if value.numel() for bound in value.aminmax()]
        if any(self.ranks.largest(not all(bound.isfinite() for bound in extremes))):
            raise self.diverged("weights", "NaN or infinities")
        if self.metrics is None:
            for value in (*weights.values(), *optimizer.values()):  # in the order of rank 0
                whole_tensor(value)
            return
        metrics_bytes, metrics_sha256 = self.metrics.mark()
        state = State(
            step=self.trainer.done,
            max_steps=self.config.max_steps,
            best_loss=self.best_loss,
            best_step=self.best_step,
            train_seconds=self.train_seconds,
            loss_scale=self.trainer.step.loss_scale,
            unevaluated=self.unevaluated,
            metrics_bytes=metrics_bytes,
            metrics_sha256=metrics_sha256,
        )
        self.saver.save(weights, optimizer, state)

    @property
    def may_go_on_uncompiled(self) -> bool:
        """Whether the step is compiled though not asked for by name, and no other process shares it."""
        named = "compile" in self.run.settings.requested["speedups"]
        return "compile" in self.config.speedups and not named and not self.ranks.connected

    def go_on_uncompiled(self) -> None:
        """Replace the trainer by one with the same state that does not compile its step."""
        speedups = tuple(name for name in self.config.speedups if name != "compile") or ("none",)
        self.resolved = replace(self.resolved, config=replace(self.config, speedups=speedups))
        compiled, self.trainer = self.trainer, self.resolved.trainer(self.trainer.data, self.ranks)
        self.trainer.load_weights(compiled.weights())
        self.trainer.step.load_state_dict(compiled.optimizer_state())
        self.trainer.done = compiled.done

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self.trainer.ranks

    def require_finite(self, loss: float, what: str) -> None:
        """Stop if training has diverged, with a TrainingFailed that names the remaining checkpoint."""
        if not math.isfinite(loss):
            raise self.diverged(what, str(loss))

    def diverged(self, what: str, found: str) -> FlashmoreError:
        """The error for values that are no longer finite, which all ranks have in common."""
        self.saver.wait()  # so that its last checkpoint can be named
        step = f"{found} at step {self.trainer.done} of {self.run.path}"
        return self.ranks.common(
            TrainingFailed(
                f"finite {what}",
                f"{step}; the last checkpoint is from step {self.saver.step}",
                f"a lower --learning-rate than {self.config.learning_rate:g}, a longer --warmup-steps, "
                "--grad-clip 1, or --dtype float32",
            )
        )


def is_finished(config: TrainConfig, step: int, best_step: int | None) -> bool:
    """Whether a run is at its last step, or no evaluation was better for `patience` evaluations."""
    waited = config.patience * config.eval_interval
    return step >= config.max_steps or (bool(waited) and best_step is not None and step - best_step >= waited)
