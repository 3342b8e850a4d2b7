"""One training step: forward, backward, clip, update."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE
from flashmore.parallel import ALONE, Ranks, shard_like
from flashmore.runs import LossScale
from flashmore.training.dataset import Batch
from flashmore.training.optimizers import ADAMW_MOMENTS, MUON_MOMENTS, optimizers_of

Precision = Callable[[], AbstractContextManager[object]]
"""Returns the context in which the model runs: autocast for 16-bit dtypes, a null context for float32."""


def precision_of(config: TrainConfig, device: torch.device) -> Precision:
    """The autocast context of the config's dtype.

    https://docs.pytorch.org/docs/stable/amp.html
    """
    if config.dtype == "float32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=getattr(torch, config.dtype))


Rates = tuple[float, float]
"""The learning rates of AdamW and Muon in an update."""
Slices = Sequence[Batch]
"""The slices of a batch that this rank computes; most often one, the whole batch."""


def mean_loss(logits: Tensor, targets: Tensor, characters: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats over real characters, EOS included.

    Args:
        logits: (B, T, V), or (N, V) of a packed batch.
        targets: (B, T) or (N,) int64, `IGNORE` at padding.
        characters: of a slice: the number of real characters in its whole batch, by which its sum is divided.

    Returns:
        A scalar float32 (float64 for float64 logits).
    """
    flat = _not_16_bit(logits).flatten(0, -2)  # (B·T, V) or (N, V)
    if characters is None:
        return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE)
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="sum") / characters


def _not_16_bit(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def training_loss(
    logits: Tensor, batch: Batch, soft_weight: float, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The value to minimise and `mean_loss`, which differ where the batch has soft targets.

    Both are of the logits divided by the temperature.

    Each target is `soft_weight` parts of a distribution and 1 - `soft_weight` parts of the character that
    follows: distillation (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), or, where it is that of
    n-grams, label smoothing (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7) that knows
    the context.
    """
    if temperature != 1:
        logits = _not_16_bit(logits) / temperature
    if batch.soft_targets is None:
        loss = mean_loss(logits, batch.targets, batch.characters)
        return loss, loss
    log_p = _not_16_bit(logits).log_softmax(-1)
    characters = (batch.targets != IGNORE).sum() if batch.characters is None else batch.characters
    hard = F.nll_loss(log_p.flatten(0, -2), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
    loss = hard / characters
    soft = -(batch.soft_targets * log_p).sum() / characters  # it is 0 at padding
    return (1 - soft_weight) * loss + soft_weight * soft, loss


def seed_dropout(batch: Batch) -> None:
    """Seed the generators from which dropout draws on this slice, so that it depends on nothing else."""
    if batch.dropout_seed is None:
        return
    torch.default_generator.manual_seed(batch.dropout_seed)
    if batch.ids.is_cuda:
        torch.cuda.default_generators[batch.ids.get_device()].manual_seed(batch.dropout_seed)
    elif batch.ids.is_mps:
        torch.mps.manual_seed(batch.dropout_seed)


class _Together:
    """Several optimizers as one for a `GradScaler`, which skips the update of one with a non-finite gradient.

    Clipping by the norm of all gradients makes such an update wrong for the others, too.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """Update all parameters."""
        for optimizer in self._optimizers:
            optimizer.step()


class EagerStep:
    """One eager optimizer step on one batch.

    Args:
        model: in training mode, on its device.
        config: the optimizer's settings, the clipping and the precision.
        fused: use the fused AdamW kernel.
        ranks: the processes that share the batch.
    """

    updates = 1
    """Updates per call; other kinds of steps may make several, or a single one."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        device: torch.device,
        *,
        fused: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.ranks = ranks
        self.ordered, self.sharded = bool(config.slices), ranks.shards(config)
        self.forward: nn.Module = model
        if ranks.connected and not (self.sharded or self.ordered):
            self.forward = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.optimizers = optimizers_of(model, config, fused=fused)
        self.together: Any = self.optimizers[0] if len(self.optimizers) == 1 else _Together(self.optimizers)
        self.grad_clip = config.grad_clip
        self.soft_weight, self.temperature = config.soft_weight, config.loss_temperature
        self.precision = precision_of(config, device)
        # float16's gradients underflow without scaling; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")

    def __call__(self, batches: Sequence[Slices], rates: Sequence[Rates]) -> Tensor:
        """Update the weights once for each batch.

        Args:
            batches: on the device; 1 or `updates` of them.
            rates: learning rates of each update.

        Returns:
            The loss of the last batch before its update, a scalar on the device; reading it synchronises. If
            the ranks have not added up their slices' losses, only those of this rank: see `Ranks.total`.
        """
        (slices,), (learning_rates,) = batches, rates
        loss = self._ordered_gradient(slices) if self.ordered else self._gradient(slices)
        for optimizer, rate in zip(self.optimizers, learning_rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate
        if self.grad_clip:
            self.scaler.unscale_(self.together)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.scaler.step(self.together)
        self.scaler.update()
        return loss

    def _gradient(self, slices: Slices) -> Tensor:
        """Add up the gradient of all slices of all ranks; returns the loss of this rank's slices.

        The ranks communicate during the backward pass of the last slice only.
        """
        self.model.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=slices[0].ids.device)
        for batch in slices[:-1]:
            with self._without_communication():
                loss = loss + self._backward(batch)
        return loss + self._backward(slices[-1])

    def _ordered_gradient(self, slices: Slices) -> Tensor:
        """The same sum in the order of the slices; returns the loss of all."""
        vectors = []
        for batch in slices:
            self.model.zero_grad(set_to_none=True)
            loss = self._backward(batch)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.model.parameters()]
            vectors.append(torch.cat([*(gradient.flatten() for gradient in gradients), loss.view(1)]))
        total = self.ranks.ordered_total(vectors)
        sizes = [parameter.numel() for parameter in self.model.parameters()]
        for parameter, part in zip(self.model.parameters(), torch.split(total[:-1], sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        return total[-1]

    def _backward(self, batch: Batch) -> Tensor:
        """Add the gradient of a slice; returns its loss."""
        seed_dropout(batch)
        with self.precision():
            logits = self.forward(batch.ids, *batch.extra)
            minimised, loss = training_loss(logits, batch, self.soft_weight, self.temperature)
        if self.ranks.connected and not self.ordered:
            minimised = minimised * self.ranks.size  # of which PyTorch takes the mean over the ranks
        self.scaler.scale(minimised).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @contextmanager
    def _without_communication(self) -> Iterator[None]:
        if isinstance(self.forward, DistributedDataParallel):
            with self.forward.no_sync():
                yield
        elif self.sharded:
            sharded: Any = self.forward
            sharded.set_requires_gradient_sync(False)
            yield
            sharded.set_requires_gradient_sync(True)
        else:
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizer's tensors by names common to all kinds of steps; see `ADAMW_MOMENTS`."""
        tensors = {"step": torch.zeros(())}
        for optimizer, moments in self._with_moments():
            for name, parameter in self._parameters_of(optimizer):
                state = optimizer.state.get(parameter, {})
                tensors |= {
                    f"{moment}.{name}": state.get(moment, torch.zeros_like(parameter)) for moment in moments
                }
                tensors["step"] = state.get("step", tensors["step"])
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned."""
        for optimizer, moments in self._with_moments():
            for name, parameter in self._parameters_of(optimizer):
                state = {moment: shard_like(parameter, tensors[f"{moment}.{name}"]) for moment in moments}
                if isinstance(optimizer, torch.optim.AdamW):
                    device = parameter.device if optimizer.defaults["fused"] else "cpu"
                    state["step"] = tensors["step"].clone().to(device)
                optimizer.state[parameter] = state

    @property
    def loss_scale(self) -> LossScale | None:
        """Loss scale for float16; None if the loss is not scaled."""
        if not self.scaler.is_enabled():
            return None
        state = self.scaler.state_dict()
        return LossScale(state["scale"], state["_growth_tracker"])

    @loss_scale.setter
    def loss_scale(self, value: LossScale | None) -> None:
        if value is not None and self.scaler.is_enabled():
            state = {"scale": value.scale, "_growth_tracker": value.growth_tracker}
            self.scaler.load_state_dict(self.scaler.state_dict() | state)

    def _with_moments(self) -> Iterator[tuple[torch.optim.Optimizer, tuple[str, ...]]]:
        return zip(self.optimizers, (ADAMW_MOMENTS, MUON_MOMENTS), strict=False)

    def _parameters_of(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for group in optimizer.param_groups:
            yield from ((names[parameter], parameter) for parameter in group["params"])
