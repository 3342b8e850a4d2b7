"""One side of the comparison of generation, in a process of its own; prints one JSON document as last line.

python benchmarks/makemore_generate_side.py makemore|flashmore PATH/makemore.py RUN BATCH
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashmore.data.vocabulary import EOS
from flashmore.generation.cache import decoder_for
from flashmore.generation.draw import draw, random_numbers
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.models.onednn import PackedLinear, pack
from flashmore.runs import Run
from makemore_model import import_makemore, their_model

CALLS = {"makemore": 3, "flashmore": 30}
"""Timed calls in a process, after two that are not."""
TOLERANCE = 1e-4


def main() -> None:
    """Time the side that is named."""
    side, script, folder, batch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    run = Run.open(folder)
    ours = pack(load_model(run, "cpu"))
    context = run.model.block_size
    numbers = random_numbers(1)
    if side == "makemore":
        module = import_makemore(script)
        theirs = their_model(module, ours, run.model)
        check_logits(ours, theirs, run)
        start = torch.zeros(batch, 1, dtype=torch.long)

        def call() -> Tensor:
            ids: Tensor = module.generate(theirs, start, context - 1, top_k=None, do_sample=True)
            return ids[:, 1:]
    else:
        decoder = decoder_for(ours)

        def call() -> Tensor:
            return draw(decoder, [], batch, context, GenerateOptions(), numbers).ids

    document: dict[str, Any] = {"call_ms": call_ms(call, CALLS[side])}
    if side == "flashmore":
        document["floor"] = floor(ours, batch, [different_prefixes(call()) for _ in range(5)])
    print(json.dumps(document))


@torch.inference_mode()
def check_logits(ours: nn.Module, theirs: Any, run: Run) -> None:
    """Both models give the same logits for random ids; without that there is no number."""
    ids = torch.randint(run.model.vocab_size, (50, run.model.block_size))
    difference = float((ours(ids) - theirs(ids)[0]).abs().max())
    if difference > TOLERANCE:
        raise SystemExit(f"logits differ by {difference}: not the same model")


@torch.inference_mode()
def call_ms(call: Callable[[], Tensor], calls: int) -> list[float]:
    """Milliseconds of each call."""
    for _ in range(2):
        call()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def different_prefixes(ids: Tensor) -> int:
    """How many different sequences, BOS and beginnings of names, need logits to draw these names (B, T)."""
    rows = [row[: row.index(EOS) + 1 if EOS in row else len(row)] for row in ids.tolist()]
    return len({tuple(row[:length]) for row in rows for length in range(len(row))})


@torch.inference_mode()
def floor(model: nn.Module, batch: int, positions: list[int]) -> dict[str, float]:
    """The time of the matrix products alone, at the rate measured for these shapes and this batch.

    Each different prefix needs one row of each product; attention's own products (1 % here) are left out.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, PackedLinear | nn.Linear)]
    inputs = [torch.randn(batch, layer.weight.size(1)) for layer in layers]

    def products() -> Tensor:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
        return inputs[0]

    flop = sum(2 * layer.weight.numel() for layer in layers)
    best = min(call_ms(products, 100))
    mean = sum(positions) / len(positions)
    rate = flop * batch / best / 1e6
    return {
        "floor_ms": mean * flop / rate / 1e6,
        "positions": mean,
        "flop_per_position": flop,
        "gflop_per_s": rate,
    }


if __name__ == "__main__":
    main()
