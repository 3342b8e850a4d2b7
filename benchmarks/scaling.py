"""Measure training in two processes against one, and fit the model of `flashmore estimate` to it.

    python benchmarks/scaling.py

A process on its own and two ranks started by torchrun stay alive and take turns, so that never both compute.
The speed-up is that of a step with the same batch. The share of communication comes from steps in which the
ranks compute their slices without exchanging anything, in turn with real ones. The bytes that the ranks send
are those of the loopback device, which other programs use as well: the least of a few windows counts.

Arithmetic rate, bandwidth, latency and overlap are fitted to one size of the model, and the prediction is
compared with steps of another size that was not used.
"""

import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
import tyro

from flashmore.config import TrainConfig
from flashmore.errors import FlashmoreError, UsageError
from flashmore.measuring.environment import environment
from flashmore.measuring.result import as_text
from flashmore.measuring.statistics import ratio, spread
from flashmore.models.registry import parameters_of
from flashmore.parallel import Ranks, connected
from flashmore.training.corpus import read_corpus
from flashmore.training.dataset import Dataset
from flashmore.training.estimate import Cost, Hardware, cost_of
from flashmore.training.resolve import Resolved, resolve
from flashmore.training.trainer import Trainer

SIZE, CPU = 2, torch.device("cpu")
GPT2: dict[str, Any] = {
    "preset": "gpt2-124m", "mode": "text", "vocab_size": 8192, "n_layer": 4, "n_embd": 256, "n_head": 4,
    "block_size": 256, "batch_size": 12, "dtype": "float32", "device": "cpu", "attention": "flash",
    "speedups": ("fused-adamw",), "threads": 1,
}  # fmt: skip
"""The preset gpt2-124m, narrowed so that a step takes about a second here; random ids."""
HELD_OUT = GPT2 | {"n_layer": 6, "n_embd": 384, "n_head": 6, "block_size": 128, "batch_size": 8}
COMPILED = {"speedups": ("compile",)}
NAMES: dict[str, Any] = {
    "device": "cpu", "attention": "flash", "speedups": ("fused-adamw", "pack", "compile"), "threads": 1,
}  # fmt: skip
"""The preset names on the built-in names, with the exact speed-ups except max-autotune."""


@dataclass(frozen=True)
class Job:
    """A training of which steps are timed."""

    options: Mapping[str, Any]
    ranks: int = SIZE
    alone: bool = False
    """Whether the ranks exchange nothing."""


SCALED: dict[str, Job] = {
    "1 process, eager": Job(GPT2, 1),
    "2 ranks, eager": Job(GPT2),
    "2 ranks, eager, without exchange": Job(GPT2, alone=True),
    "2 ranks, fsdp": Job(GPT2 | {"parallel": "fsdp"}),
    "1 process, compiled": Job(GPT2 | COMPILED, 1),
    "2 ranks, compiled": Job(GPT2 | COMPILED),
    "2 ranks, compiled, without exchange": Job(GPT2 | COMPILED, alone=True),
}
OF_NAMES: dict[str, Job] = {
    "1 process, 2 threads": Job(NAMES | {"threads": 2}, 1),
    "2 ranks": Job(NAMES),
    "2 ranks, without exchange": Job(NAMES, alone=True),
}
OTHER_SIZE: dict[str, Job] = {
    "ddp, eager": Job(HELD_OUT),
    "fsdp": Job(HELD_OUT | {"parallel": "fsdp"}),
}
SENDING: dict[str, Job] = {
    "ddp": Job(GPT2),
    "ddp, compiled": Job(GPT2 | COMPILED),
    "ddp, --slices 4": Job(GPT2 | {"slices": 4}),
    "fsdp": Job(GPT2 | {"parallel": "fsdp"}),
    "fsdp, --grad-accum 2": Job(GPT2 | {"parallel": "fsdp", "grad_accum": 2}),
    "fsdp, --activation-checkpointing": Job(GPT2 | {"parallel": "fsdp", "activation_checkpointing": True}),
}
WINDOWS, WARM_UP, START_SECONDS = 3, 2, 120
THREADS = 2
"""Of the process on its own, where it uses both cores, and of the ranks together."""
MESSAGES, TIMES = (1, 2**23), 3
"""Elements of an all-reduce, and how often each is timed after every round."""


@dataclass(frozen=True)
class Options:
    """Measure two ranks against one process."""

    rounds: int = 8
    """Blocks of each variant."""
    steps: int = 2
    """Steps of a block; ten times as many of names."""
    record: Path | None = None
    """Print the figures of this record, made with --json, and measure nothing."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main() -> int:
    """Measure and print."""
    if address := os.environ.get("FLASHMORE_SCALING"):
        serve(json.loads(address))
        return 0
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    if options.record is not None:
        print(*figures(json.loads(options.record.read_text(encoding="utf-8"))), sep="\n")
        return 0
    try:
        with workers() as started:
            record = measure(options, started)
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(as_text(record), end="")
    else:
        print(*figures(record), sep="\n")
    return 0


def measure(options: Options, started: "Workers") -> dict[str, Any]:
    """All parts, one after the other."""
    torch.set_num_threads(1)
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    exchange: dict[str, list[float]] = {str(count): [] for count in MESSAGES}

    def exchanged() -> None:
        for count, times in started[SIZE]("exchange").items():
            exchange[count] += times

    # Together, for what is fitted and what it predicts must be measured under the same conditions.
    scaled = started.alternating(SCALED | OTHER_SIZE, options.rounds, options.steps, exchanged)
    other = {name: scaled.pop(name) for name in OTHER_SIZE}
    names = started.alternating(OF_NAMES, options.rounds, 10 * options.steps)
    load.append(os.getloadavg()[0])
    sent = {
        name: {"counted": counted(job).sent, "measured": started.sent(job)} for name, job in SENDING.items()
    }
    load.append(os.getloadavg()[0])
    fitted = fit_hardware(scaled, exchange)
    return {
        "what": "scaling",
        "of": "preset gpt2-124m narrowed to " + sizes_of(GPT2),
        "scaled": {
            "samples_ms": scaled,
            "speed_up": {
                kind: asdict(ratio(scaled[f"1 process, {of}"], scaled[f"2 ranks, {kind}"]))
                for kind, of in {"eager": "eager", "fsdp": "eager", "compiled": "compiled"}.items()
            },
            "communication": {
                kind: share(scaled[f"2 ranks, {kind}"], scaled[f"2 ranks, {kind}, without exchange"])
                for kind in ("eager", "compiled")
            },
        },
        "names": {
            "samples_ms": names,
            "speed_up": asdict(ratio(names["1 process, 2 threads"], names["2 ranks"])),
            "communication": share(names["2 ranks"], names["2 ranks, without exchange"]),
        },
        "sent_bytes": sent,
        "exchange_ms": exchange,
        "fitted": asdict(fitted),
        "held_out": {
            "of": sizes_of(HELD_OUT),
            "samples_ms": other,
            "step_ms": {
                name: {
                    "predicted": 1000 * counted(job).seconds(fitted).step,
                    "measured": spread(other[name]).median,
                }
                for name, job in OTHER_SIZE.items()
            },
        },
        "load_average": load,
        "seconds": time.perf_counter() - began,
        "environment": environment(CPU),
    }


def sizes_of(options: Mapping[str, Any]) -> str:
    """The sizes of a Transformer, for people."""
    sizes = (
        f"{name} {options[name]}" for name in ("n_layer", "n_embd", "n_head", "block_size", "vocab_size")
    )
    parameters = parameters_of(resolved_of(Job(options))[0].model_config)
    return f"{', '.join(sizes)}: {parameters:,} parameters; batch {options['batch_size']}, float32"


def share(together: list[list[float]], alone: list[list[float]]) -> dict[str, float]:
    """The share of a step that exchanging takes, with its 95 % interval."""
    found = ratio(together, alone)
    return {name: 1 - 1 / getattr(found, name) for name in ("value", "low", "high")}


def fit_hardware(scaled: Mapping[str, list[list[float]]], exchange: Mapping[str, list[float]]) -> Hardware:
    """The constants of the model, from eager steps and all-reduces of one element and of many.

    An all-reduce of n elements sends 2(N - 1)/N · 4n bytes in 2(N - 1) messages, for N = 2 ranks 4n in 2.
    """
    cost = counted(SCALED["2 ranks, eager"])
    together, alone = (
        spread(scaled[name]).median / 1000 for name in ("2 ranks, eager", "2 ranks, eager, without exchange")
    )
    least, most = min(MESSAGES), max(MESSAGES)
    latency, long = (statistics.median(exchange[str(count)]) / 1000 for count in (least, most))
    bandwidth = 4 * (most - least) / max(long - latency, 1e-9)
    apart = Hardware(cost.flop / alone / 1e12, bandwidth / 1e9, 1e6 * latency / 2, 0.0)
    predicted = cost.seconds(apart)
    hidden = (predicted.step - together) / min(predicted.communication, cost.beside * predicted.compute)
    return replace(apart, overlap=min(1.0, max(0.0, hidden)))


def counted(job: Job) -> Cost:
    """What a step costs a rank, as `flashmore estimate` counts it."""
    resolved, data = resolved_of(job)
    return cost_of(resolved.config, resolved.model_config, Ranks(0, job.ranks), data.tokens_a_batch)


def resolved_of(job: Job) -> tuple[Resolved, Dataset]:
    """The config with everything resolved, and the training data."""
    return _resolved(tuple(sorted(job.options.items())))


@cache
def _resolved(options: tuple[tuple[str, Any], ...]) -> tuple[Resolved, Dataset]:
    config = TrainConfig(**dict(options))
    corpus = read_corpus(config)
    resolved = resolve(config, corpus, CPU)
    return resolved, corpus.datasets(resolved.config, CPU).train


class Workers:
    """The process on its own, and rank 0 of two, by the number of ranks."""

    def __init__(self, connections: Mapping[int, TextIO]) -> None:
        self._connections = connections

    def __getitem__(self, size: int) -> Callable[..., Any]:
        connection = self._connections[size]

        def call(what: str, /, **arguments: Any) -> Any:
            send(connection, {"do": what, **arguments})
            return receive(connection)

        return call

    def alternating(
        self,
        jobs: Mapping[str, Job],
        rounds: int,
        steps: int,
        after_round: Callable[[], None] = lambda: None,
    ) -> dict[str, list[list[float]]]:
        """Time steps of the jobs in short alternating blocks: milliseconds."""
        samples: dict[str, list[list[float]]] = {name: [] for name in jobs}
        for name, job in jobs.items():
            print(f"preparing {name}", file=sys.stderr)
            self._prepare(name, job)
        for done in range(rounds):
            for name in list(jobs) if done % 2 == 0 else reversed(list(jobs)):
                samples[name].append(self[jobs[name].ranks]("steps", name=name, count=steps))
            after_round()
            latest = ", ".join(f"{name} {blocks[-1][-1]:.0f} ms" for name, blocks in samples.items())
            print(f"{done + 1}/{rounds}: {latest}", file=sys.stderr)
        for name, job in jobs.items():
            self[job.ranks]("forget", name=name)
        return samples

    def sent(self, job: Job) -> float:
        """Bytes that a rank sends in a step."""
        self._prepare("sending", job)
        return float(self[job.ranks]("sent", name="sending"))

    def _prepare(self, name: str, job: Job) -> None:
        options = dict(job.options)
        self[job.ranks]("prepare", name=name, options=options, alone=job.alone)


@contextmanager
def workers() -> Iterator[Workers]:
    """Start the processes; they end with the context."""
    token = secrets.token_hex(16)
    script = [str(Path(__file__).resolve())]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(SIZE)]
    started: list[subprocess.Popen[bytes]] = []
    connections: dict[int, TextIO] = {}
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as opened:
        server.settimeout(START_SECONDS)
        address = json.dumps({"port": server.getsockname()[1], "token": token})
        try:
            for size, words in {1: script, SIZE: [*torchrun, *script]}.items():
                here = {"FLASHMORE_SCALING": address, "OMP_NUM_THREADS": str(THREADS // size)}
                command = [sys.executable, *words]
                process = subprocess.Popen(
                    command, env=os.environ | here, stdout=sys.stderr, start_new_session=True
                )
                started.append(process)
                connection = opened.enter_context(server.accept()[0])
                connections[size] = connection.makefile("rw", encoding="utf-8")
                if receive(connections[size]) != token:
                    raise UsageError("a connection of a worker", "another program", "to start again")
            yield Workers(connections)
            for file in connections.values():
                send(file, None)
            for process in started:
                process.wait()
        except TimeoutError:
            found = f"none after {START_SECONDS} s"
            raise UsageError("a connection of a worker", found, "see its messages above") from None
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()


def send(file: TextIO, message: Any) -> None:
    """Send a JSON value, in a line."""
    file.write(json.dumps(message) + "\n")
    file.flush()


def receive(file: TextIO) -> Any:
    """The next JSON value.

    Raises:
        UsageError: the other side has ended.
    """
    try:
        line = file.readline()
    except ConnectionError:
        line = ""
    if not line:
        raise UsageError("a process that goes on", "it has ended", "see its messages above")
    return json.loads(line)


def serve(address: Mapping[str, Any]) -> None:
    """Do what the driver asks until it sends None."""
    with connected("cpu") as ranks, ExitStack() as opened:
        worker, file = Worker(ranks), None
        if ranks.rank == 0:
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", address["port"])))
            file = connection.makefile("rw", encoding="utf-8")
            send(file, address["token"])
        while (asked := ranks.tell(None if file is None else receive(file))) is not None:
            answer = getattr(worker, asked.pop("do"))(**asked)
            if file is not None:
                send(file, answer)


class Worker:
    """A rank, or the process on its own: trainers by name."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.trainers: dict[str, Trainer] = {}

    def prepare(self, name: str, options: dict[str, Any], *, alone: bool) -> None:
        """Build a trainer and warm it up."""
        resolved, data = resolved_of(Job({key: _hashable(value) for key, value in options.items()}))
        ranks = replace(self.ranks, connected=self.ranks.connected and not alone)
        self.trainers[name] = resolved.trainer(data, ranks)
        self.steps(name, WARM_UP)

    def forget(self, name: str) -> None:
        """Free a trainer."""
        del self.trainers[name]

    def steps(self, name: str, count: int) -> list[float]:
        """Milliseconds of each step, of the slower rank."""
        trainer = self.trainers[name]
        torch.set_num_threads(trainer.config.threads_here)
        self._begin_together()
        times = []
        for _ in range(count):
            began = time.perf_counter()
            trainer.train_step().item()
            times.append(1000 * (time.perf_counter() - began))
        return self._slowest(times)

    def sent(self, name: str) -> float:
        """The bytes on the loopback device in a step, per rank."""
        found = []
        for _ in range(WINDOWS):
            self._begin_together()
            began = _loopback_bytes()
            self.trainers[name].train_step().item()
            self._begin_together()
            found.append(_loopback_bytes() - began)
        return min(found) / self.ranks.size

    def exchange(self) -> dict[str, list[float]]:
        """Milliseconds of an all-reduce by its number of elements."""
        found = {}
        for count in MESSAGES:
            values, times = torch.zeros(count), []
            for _ in range(TIMES):
                began = time.perf_counter()
                self.ranks.total(values)
                times.append(1000 * (time.perf_counter() - began))
            found[str(count)] = self._slowest(times)
        return found

    def _begin_together(self) -> None:
        self.ranks.total(torch.zeros(1))

    def _slowest(self, times: list[float]) -> list[float]:
        slowest = torch.tensor(times, dtype=torch.float64)
        if self.ranks.connected:
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
        found: list[float] = slowest.tolist()
        return found


def _hashable(value: Any) -> Any:
    """As it was before it was JSON."""
    return tuple(value) if isinstance(value, list) else value


def _loopback_bytes() -> int:
    """Bytes that this machine has sent to itself since it was started."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise UsageError("a loopback device", "none in /proc/net/dev", "Linux")


def figures(record: Mapping[str, Any]) -> Iterator[str]:
    """The rows of the tables in docs/scaling.md, and the figures in its text."""
    for name, sent in record["sent_bytes"].items():
        measured, counted = sent["measured"] / 1e6, sent["counted"] / 1e6
        yield f"| {name} | {counted:.2f} | {measured:.2f} | {_percent(measured / counted - 1, '+')} |"
    scaled, names = record["scaled"], record["names"]
    for kind, found in scaled["speed_up"].items():
        exchanging = scaled["communication"].get(kind)
        yield f"| {kind} | {_with_interval(found)} | {'–' if exchanging is None else _share(exchanging)} |"
    yield f"| names, compiled | {_with_interval(names['speed_up'])} | {_share(names['communication'])} |"
    fitted = record["fitted"]
    yield f"{1000 * fitted['tflops']:.1f} GFLOP/s, {fitted['bandwidth_gb_s']:.2f} GB/s"
    yield f"{fitted['latency_us']:.0f} µs a message, overlap {fitted['overlap']:.2f}"
    for kind, step in record["held_out"]["step_ms"].items():
        apart = _percent(step["predicted"] / step["measured"] - 1, "+")
        yield f"| {kind} | {step['predicted']:,.0f} | {step['measured']:,.0f} | {apart} |"
    load = record["load_average"]
    yield f"load average {min(load):.1f} to {max(load):.1f}"


def _with_interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} – {found['high']:.2f})"


def _share(found: Mapping[str, float]) -> str:
    low, high = _percent(found["low"]), _percent(found["high"])
    return f"{_percent(found['value'])} ({low} – {high})"


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} %"


if __name__ == "__main__":
    sys.exit(main())
