"""Characters of text a second: nanoGPT's own `GPT.generate` against ours, with the same weights.

    python benchmarks/text_generation.py --nanogpt PATH

nanoGPT is Karpathy's GPT trainer, https://github.com/karpathy/nanoGPT. Nothing of it is copied: PATH is your
own checkout, whose model.py is imported. Both sides run in this process and alternate, with the same random
weights, enlarged so that they prefer some characters, and with the temperature and top-k of `SAMPLING`.
Neither is timed at turning ids into text.

Before anything is timed, both continue the same text greedily to beyond the context, which must give the same
characters, and draw `DRAWS` next characters, whose frequencies must fit the same probabilities.

`within`: up to the full context; nanoGPT around its middle, since its cost grows evenly. `beyond`: after it,
where both sides condition each character on exactly as many characters as the context has (`--stride 1`).
`strided`: ours with the default stride, half the context, so that each character follows half of that to all;
nanoGPT, which has no such option, as for `beyond`.
"""

import contextlib
import importlib.util
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from comparison import Record, answer
from flashmore.errors import UsageError
from flashmore.generation.cache import decoder_for
from flashmore.generation.draw import next_probabilities
from flashmore.generation.options import GenerateOptions
from flashmore.generation.text import continuations
from flashmore.measuring.statistics import ratio, spread
from flashmore.models.config import ModelConfig
from flashmore.models.onednn import PackedLinear, pack
from flashmore.models.registry import build
from flashmore.share.gpt2 import our_weights

SIZES = {
    "cpu": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64},
    "shakespeare_char": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256},
}
"""nanoGPT's configuration for a CPU in its README, and config/train_shakespeare_char.py."""
V = 65
SAMPLING = GenerateOptions(temperature=0.8, top_k=20)
DRAWS = 2000
TOLERANCE = 1e-4
SEEDS = itertools.count(1)


@dataclass(frozen=True)
class Options:
    """Compare the generation of text with a nanoGPT checkout on this machine."""

    nanogpt: Path
    """The checkout: a folder with model.py."""
    sizes: tuple[str, ...] = tuple(SIZES)
    """Sizes of the model: `cpu`, `shakespeare_char`."""
    streams: tuple[int, ...] = (1, 16)
    """Numbers of texts that are continued at once."""
    rounds: int = 7
    """Blocks of each side; they alternate."""
    threads: int = 2
    """CPU threads of both sides."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main() -> int:
    """Run the comparison that the options name."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    return answer(lambda: compare(options), report, as_json=options.json)


def compare(options: Options) -> dict[str, Any]:
    """All sizes and numbers of streams, one after the other."""
    script = options.nanogpt / "model.py"
    if not script.is_file():
        raise UsageError("a nanoGPT checkout", f"no model.py in {options.nanogpt}", "--nanogpt PATH")
    if odd := set(options.sizes) - SIZES.keys():
        raise UsageError("known --sizes", ", ".join(odd), ", ".join(SIZES))
    torch.set_num_threads(options.threads)
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("nanogpt_model", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases: list[dict[str, Any]] = []
    for name in options.sizes:
        theirs, ours = models(module, SIZES[name])
        check_greedy(theirs, ours, SIZES[name]["block_size"])
        check_draws(theirs, ours)
        for streams in options.streams:
            cases += timed(name, theirs, ours, streams, options.rounds)
    record: dict[str, Any] = {"what": "text-generation", "of": "nanoGPT", "to": "flashmore", "cases": cases}
    return record | {"threads": options.threads}


def models(module: Any, sizes: dict[str, int]) -> tuple[Any, nn.Module]:
    """nanoGPT's model and ours, with the same weights."""
    torch.manual_seed(0)
    with contextlib.redirect_stdout(sys.stderr):  # it prints the number of its parameters
        theirs = module.GPT(module.GPTConfig(vocab_size=V, dropout=0.0, bias=False, **sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    config = ModelConfig("transformer", V, bias=False, tie_weights=True, activation="gelu", **sizes)  # type: ignore[arg-type]
    ours = build(config, seed=1).eval()
    ours.load_state_dict(our_weights(theirs.state_dict(), transposed=False))
    return theirs, pack(ours)


def check_greedy(theirs: Any, ours: nn.Module, context: int) -> None:
    """Both continue one character by 1.2 times the context, always with the likeliest one."""
    length = context + context // 5
    expected = theirs.generate(torch.tensor([[1]]), length, top_k=1)[0, 1:].tolist()
    found = [
        row[0] for row in continuations(decoder_for(ours), [1], length, GenerateOptions(top_k=1), [0], 1)
    ]
    if found != expected:
        raise SystemExit("the greedy texts differ: not the same model")


def check_draws(theirs: Any, ours: nn.Module) -> None:
    """The logits agree, and on both sides the next characters come as often as their probabilities say."""
    ids = torch.randint(V, (1, 8))
    with torch.inference_mode():
        logits = theirs(ids)[0][:, -1]
        difference = float((logits - ours(ids)[:, -1]).abs().max() / logits.abs().max())
        if difference > TOLERANCE:
            raise SystemExit(f"logits differ by {difference}: not the same model")
        probabilities = next_probabilities(logits.double(), SAMPLING)[0].tolist()
    made = theirs.generate(ids.expand(DRAWS, -1), 1, SAMPLING.temperature, SAMPLING.top_k)
    drawn = {
        "nanoGPT": made[:, -1].tolist(),
        "flashmore": next(continuations(decoder_for(ours), ids[0].tolist(), 1, SAMPLING, range(DRAWS))),
    }
    likely = [number for number, probability in enumerate(probabilities) if probability * DRAWS >= 5]
    for side, numbers in drawn.items():
        counts = Counter(numbers)
        means = {number: DRAWS * probabilities[number] for number in likely}
        statistic = sum((counts[number] - mean) ** 2 / mean for number, mean in means.items())
        odd = any(not probabilities[number] for number in counts)
        if odd or statistic > len(likely) + 5 * math.sqrt(2 * len(likely)):
            raise SystemExit(f"{side} draws from another distribution: chi-square {statistic:.1f}")


def timed(name: str, theirs: Any, ours: nn.Module, streams: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The three cases of one size and number of streams."""
    T, decoder = SIZES[name]["block_size"], decoder_for(ours)
    few = max(2, min(T // 4, 4096 // (T * streams)))  # steps of a block that recompute the window
    half = torch.randint(V, (streams, (T - few) // 2))
    full = torch.randint(V, (streams, T))
    blocks: dict[str, list[list[float]]] = {}

    def theirs_ms(ids: Tensor) -> float:
        return ms(lambda: theirs.generate(ids, few, SAMPLING.temperature, SAMPLING.top_k), few)

    def ours_ms(ids: Tensor, steps: int, stride: int) -> float:
        seeds = range(first := next(SEEDS) * streams, first + streams)
        window = ids[0].tolist()
        return ms(lambda: list(continuations(decoder, window, steps, SAMPLING, seeds, stride)), steps)

    sides: dict[str, Callable[[], float]] = {
        "nanoGPT within": lambda: theirs_ms(half),
        "flashmore within": lambda: ours_ms(full[:, :1], T, 1),
        "nanoGPT beyond": lambda: theirs_ms(full),
        "flashmore beyond": lambda: ours_ms(full, few, 1),
        "flashmore strided": lambda: ours_ms(full, T, T // 2),
    }
    for done in range(rounds + 1):  # the first is not counted
        for side, block in sides.items():
            taken = block()
            if done:
                blocks.setdefault(side, []).append([taken])
    blocks["nanoGPT strided"] = blocks["nanoGPT beyond"]
    alone, whole = floor_ms(ours, streams), floor_ms(ours, streams * T)
    strided = alone + floor_ms(ours, streams * (T // 2 + 1)) / (T // 2)  # the window once for T / 2 steps
    for where, floor in (("within", alone), ("beyond", whole), ("strided", strided)):
        of, to = blocks[f"nanoGPT {where}"], blocks[f"flashmore {where}"]
        yield {
            "size": name,
            "streams": streams,
            "where": where,
            "ratio": asdict(ratio(of, to)),
            "characters_per_s": {
                "nanoGPT": 1e3 * streams / spread(of).median,
                "flashmore": 1e3 * streams / spread(to).median,
            },
            "floor_ms": floor,
            "step_ms": {"nanoGPT": asdict(spread(of)), "flashmore": asdict(spread(to))},
            "samples_ms": {"nanoGPT": of, "flashmore": to},
        }
        print(f"{name}, {streams} streams, {where}: done", file=sys.stderr)


def ms(call: Callable[[], object], steps: int) -> float:
    """Milliseconds of a step."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3 / steps


@torch.inference_mode()
def floor_ms(ours: nn.Module, rows: int) -> float:
    """The time of the products of all linear layers with so many rows of input."""
    layers: list[Any] = [module for module in ours.modules() if isinstance(module, PackedLinear | nn.Linear)]
    inputs = [torch.randn(rows, layer.weight.size(1)) for layer in layers]
    if rows == 1:  # for which transposed weights are the fastest
        layers = [partial(torch.mm, mat2=layer.weight.detach().t().contiguous()) for layer in layers]
    return min(ms(lambda: [layer(x) for layer, x in zip(layers, inputs, strict=True)], 1) for _ in range(10))


def report(record: Record) -> None:
    """Print the figures for people."""
    for case in record["cases"]:
        speeds, value = case["characters_per_s"], case["ratio"]
        gap = case["step_ms"]["flashmore"]["median"] / case["floor_ms"]
        print(
            f"{case['size']:<16} {case['streams']:>2} streams {case['where']:<7}"
            f" {speeds['nanoGPT']:>7,.0f} {speeds['flashmore']:>7,.0f} characters/s"
            f"  ratio {value['value']:.2f} (95 % {value['low']:.2f} – {value['high']:.2f})"
            f"  floor {case['floor_ms']:.2f} ms, ours {gap:.1f} times as long"
        )


if __name__ == "__main__":
    sys.exit(main())
