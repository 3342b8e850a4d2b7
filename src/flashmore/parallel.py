"""Several processes that train one model: which part of a batch is whose, and what they send each other.

`torchrun --nproc-per-node N -m flashmore train …` starts N processes, the ranks. Everything they send goes
through `torch.distributed`: NCCL between GPUs, Gloo between CPUs.
https://docs.pytorch.org/docs/stable/elastic/run.html

A batch is cut into slices of equal size, of which each rank computes the same number. The loss of a slice is
a sum divided by the number of characters in the whole batch, so the sum over slices is the mean over all
characters, however many ranks there are.

P parameters.
"""

import atexit
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, FlashmoreError, RankLost, RankStopped
from flashmore.ranks import local_rank, local_world_size, machine, rank, world_size

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""Longest wait for another rank: rank 0 reads the data and measures speed-ups while the others wait."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Messages of Gloo about a rank that has ended."""
_DROPPED_SECONDS = 0.2
_FAILURE = "failure"
"""Where the first rank that fails leaves its message."""
_shared: Store | None = None
"""The store of this attempt, once the ranks are connected."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them."""

    rank: int = 0
    size: int = 1
    connected: bool = False
    """Whether there are others to send to. Rank 0 also times steps before the others are told to begin."""

    def slices(self, config: TrainConfig) -> tuple[tuple[int, int], ...]:
        """The slices of each batch that this rank computes: (number, count) each.

        Raises:
            ConfigError: slices that the ranks, or rows that the slices, cannot share equally.
        """
        count = config.slices or self.size * config.grad_accum
        if count % self.size:
            valid = f"a multiple of {self.size}, or no --slices"
            raise ConfigError("--slices that the ranks divide", f"{count} for {self.size} ranks", valid)
        if config.batch_size % count:
            lower, upper = config.batch_size // count * count, -(-config.batch_size // count) * count
            raise ConfigError(
                f"a --batch-size that {count} slices share equally ({self.size} ranks)",
                f"{config.batch_size}",
                " or ".join(str(size) for size in (lower, upper) if size),
            )
        each = count // self.size
        return tuple((number, count) for number in range(self.rank * each, (self.rank + 1) * each))

    def shards(self, config: TrainConfig) -> bool:
        """Whether each rank keeps a share of the model only, not a copy; not while rank 0 works alone."""
        return self.connected and config.parallel == "fsdp"

    def total(self, values: Tensor) -> Tensor:
        """The sum of every rank's tensor, in place."""
        if self.connected:
            dist.all_reduce(values)
        return values

    def largest(self, *values: float) -> list[float]:
        """The largest of every rank's numbers, one by one."""
        found = torch.tensor(values, dtype=torch.float64)
        if self.connected:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return [float(value) for value in found]

    def ordered_total(self, vectors: Sequence[Tensor]) -> Tensor:
        """The sum over all slices in their order, the same bits for any number of ranks.

        Every rank receives a share of all vectors, adds them up slice by slice, and sends the sum to all.
        This moves as much as an all-reduce if each rank has one slice.

        Args:
            vectors: (P,) for each slice of this rank, in order.

        Returns:
            (P,)
        """
        size = self.size if self.connected else 1
        length = len(vectors[0])
        padded = -(-length // size) * size
        stacked = torch.stack([torch.nn.functional.pad(vector, (0, padded - length)) for vector in vectors])
        if size == 1:
            return _left_fold(stacked)
        sent = stacked.view(len(vectors), size, -1).transpose(0, 1).contiguous()  # (ranks, slices, P / ranks)
        received = torch.empty_like(sent)  # (ranks, slices, P / ranks) of this rank's share
        dist.all_to_all_single(received, sent)
        total = stacked.new_empty(size, padded // size)
        dist.all_gather(list(total), _left_fold(received.flatten(0, 1)))
        return total.flatten()[:length]

    def tell(self, message: dict[str, Any] | None) -> dict[str, Any] | None:
        """Send a JSON object from rank 0 to all; returns it. The others pass None."""
        told = [message]
        if self.connected:
            dist.broadcast_object_list(told, 0)
        return told[0]

    def of_rank_0(self, make: Callable[[], T]) -> T:
        """What a function returns on rank 0, which alone calls it while the others wait.

        Args:
            make: returns something that can be pickled.

        Raises:
            Exception: on rank 0, whatever the function raises.
            RankStopped: on the others, if it raised.
        """
        made: list[tuple[T, ...]] = [()]
        try:
            if self.rank == 0 or not self.connected:
                made = [(make(),)]
        finally:
            if self.connected:
                dist.broadcast_object_list(made, 0)
        if not made[0]:
            raise RankStopped("an answer of rank 0", "it has failed", "see its message")
        return made[0][0]

    def require_alike(self, values: dict[str, Any]) -> None:
        """Refuse to go on if a rank was started with other values.

        Raises:
            ConfigError: on rank 0; it names the values.
            RankStopped: on the others.
        """
        mine = json.loads(json.dumps(values))
        told = self.tell(mine)
        assert told is not None
        names = [*told, "other options"]  # in equal number on every rank, whatever it was started with
        differing = [int(name not in mine or mine[name] != value) for name, value in told.items()]
        differing.append(int(not mine.keys() <= told.keys()))
        found = self.total(torch.tensor(differing)).tolist()
        if any(found):
            listed = ", ".join(name for name, count in zip(names, found, strict=True) if count)
            valid = "one torchrun command, which starts all ranks"
            error = ConfigError("the same command for every rank", f"differences in {listed}", valid)
            raise self.common(error)

    def common(self, error: FlashmoreError) -> FlashmoreError:
        """An error that every rank raises: only rank 0 reports it."""
        return error if self.rank == 0 else RankStopped(error.wanted, error.found, error.valid)


def _left_fold(rows: Tensor) -> Tensor:
    """The sum of rows one after the other: `Tensor.sum` may use another order."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


ALONE = Ranks()
"""One process."""


def shard_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """A copy of a tensor on the device of a parameter, cut as the parameter is; nothing is sent."""
    if not hasattr(parameter, "full_tensor"):
        return whole.clone().to(parameter.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    share = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    result = torch.empty_like(parameter, requires_grad=False)  # in CPU memory if the parameter is offloaded
    assert isinstance(result, DTensor)
    result.to_local().copy_(share.to_local())
    return result


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor in one piece, which every rank must ask for."""
    # A DTensor: importing its class takes half a second.
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def own_share(value: Tensor) -> Tensor:
    """This rank's share of a tensor, or all of it if it is not sharded."""
    share: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return share


def shard(model: nn.Module, ranks: Ranks, device: torch.device, *, offload: bool) -> None:
    """Shard a model's parameters over the ranks, block by block.

    https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    mesh = init_device_mesh(device.type, (ranks.size,))
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy)


class Requests:
    """Requests of any rank to stop or to save, which all ranks follow at the same step.

    Each call of `ask` sends this rank's requests and receives the answer to those of the call before, so that
    training never waits for it; on a single rank they are answered at once.

    Args:
        stopped_by: returns the signal that this process has received, or 0; of several, the largest counts.
    """

    def __init__(self, ranks: Ranks, stopped_by: Callable[[], int]) -> None:
        self.stopped_by, self._ranks = stopped_by, ranks
        self._sent = torch.zeros(2, dtype=torch.int64)
        self._work: Any = None
        self._saving = False
        self.stop = stopped_by() if ranks.size == 1 else 0
        """The signal by which all ranks stop, or 0."""
        self.save = False
        """Whether all ranks save."""

    def ask(self, *, save: bool = False) -> bool:
        """Exchange requests; returns whether to stop. Only rank 0 decides when to save."""
        # The answer to a request comes with the next call, whose request would be for the same checkpoint.
        self._saving = save and self._ranks.rank == 0 and not (self._ranks.connected and self._saving)
        own = self.stopped_by(), int(self._saving)
        if not self._ranks.connected:
            self._follow(*own)
            return bool(self.stop)
        self.settle()
        self._sent = torch.tensor(own)
        self._work = dist.all_reduce(self._sent, dist.ReduceOp.MAX, async_op=True)
        return bool(self.stop)

    def settle(self) -> None:
        """Follow the answer to the last call, if it has not come yet."""
        if self._work is not None:
            self._work.wait()
            self._work = None
            self._follow(*self._sent.tolist())
        else:
            self.save = False

    def _follow(self, stop: int, save: int) -> None:
        self.stop, self.save = self.stop or stop, bool(save)


@contextmanager
def connected(device_name: str) -> Iterator[Ranks]:
    """Connect this process to the other ranks, if torchrun started several.

    Args:
        device_name: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        ConfigError: more ranks than GPUs here, a device that ranks cannot share, or no connection.
        RankLost: another rank ended.
    """
    size = world_size()
    if size == 1:
        yield ALONE
        return
    if not dist.is_initialized():
        _connect(device_name, size)
    try:
        yield Ranks(rank(), size, connected=True)
    except RuntimeError as error:
        if "Timed out" in str(error):
            minutes = f"{TIMEOUT.total_seconds() / 60:.0f} minutes"
            valid = "data that rank 0 reads sooner (flashmore prepare), or a look at what the ranks do"
            raise FlashmoreError(f"an answer of all {size} ranks within {minutes}", "none", valid) from None
        if not is_of_a_lost_rank(error):
            raise
        raise lost() from None


def _connect(device_name: str, size: int) -> None:
    if device_name == "mps":
        raise ConfigError("--device cpu or cuda with torchrun", "--device mps", "--device cpu")
    gpus = torch.cuda.device_count() if device_name in ("auto", "cuda") else 0
    if gpus:
        if (here := local_world_size()) > gpus:
            found = f"{gpus} GPU{'s' * (gpus > 1)} for {here} ranks"
            valid = f"torchrun --nproc-per-node {gpus}, or --device cpu"
            raise ConfigError("a GPU for each rank on this machine", found, valid)
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    global _shared
    try:
        _shared = _store()
        dist.init_process_group(backend, store=_shared, rank=rank(), world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        found = str(error).partition("\n")[0]
        valid = "one torchrun command for all ranks, and a free port: --rdzv-endpoint HOST:PORT"
        raise ConfigError(f"a connection of {size} ranks at {address}", found, valid) from None
    atexit.register(_disconnect)


def _disconnect() -> None:
    # Gloo's threads take Python's lock to drop the tensors of the last messages, for which Python does not
    # wait when it ends: it would abort. While this thread sleeps, they have the lock.
    time.sleep(_DROPPED_SECONDS)
    dist.destroy_process_group()


def _store() -> Store:
    """The store through which the ranks find each other's addresses, without those of an earlier attempt.

    torchrun keeps one store for all attempts of `--max-restarts`, so a rank may read the address of one that
    has died. Here rank 0 names each attempt, every other rank signs its name with a number of its own, and
    goes on once rank 0 has confirmed that number.
    """
    store, own, size = next(rendezvous("env://", timeout=TIMEOUT))
    number = secrets.token_hex(8)
    if own == 0:
        store.set("attempt", number)
        signed = [store.get(f"{number}/{other}").decode() for other in range(1, size)]
        store.set(f"{number}/confirmed", " ".join(signed))
        return PrefixStore(number, store)
    began = time.monotonic()
    while time.monotonic() - began < TIMEOUT.total_seconds():
        attempt = store.get("attempt").decode()
        store.set(f"{attempt}/{own}", number)
        confirmed = f"{attempt}/confirmed"
        if store.check([confirmed]) and number in store.get(confirmed).decode().split():
            return PrefixStore(attempt, store)
        time.sleep(0.02)
    raise TimeoutError(f"rank 0 did not answer for {TIMEOUT}")


def is_of_a_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed because another rank has ended."""
    distributed = isinstance(error, torch.distributed.DistError)
    return distributed or any(sign in str(error) for sign in _LOST)


def lost() -> RankLost:
    """The error for a collective that failed because another rank has ended."""
    valid = "the same command again: a training goes on, with torchrun --max-restarts by itself"
    return RankLost(f"all {world_size()} ranks", "another rank has ended", valid)


def to_print(lines: Sequence[str], *, lost: bool) -> Sequence[str]:
    """What this rank prints when it ends with an error: only the first message of all ranks is printed.

    The rank that fails first prints it itself. If it does so on another machine, rank 0 prints it as well.

    Args:
        lines: this rank's own message.
        lost: whether it only says that another rank has ended, possibly without a message.
    """
    assert _shared is not None
    own = json.dumps([machine(), *lines])
    try:
        if lost:
            first = _shared.get(_FAILURE).decode() if _shared.check([_FAILURE]) else own
        else:
            first = _shared.compare_set(_FAILURE, "", own).decode()
    except RuntimeError:  # the process with the store has ended
        return lines
    where, *message = json.loads(first)
    if first == own:
        return lines
    return message if rank() == 0 and where != machine() else ()
