"""FM104 no-autocast: a loop that trains on a GPU in float32, without TF32."""

import re
from collections.abc import Iterator

from flashmore.upgrade.rules.advice import Said, runs_on_gpu, saying
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.source.loops import training_loops

_PRECISION = re.compile(
    r"autocast|\bamp\b|bfloat16|bf16|float16|fp16|\.half\(|precision|tf32|GradScaler|accelerat|lightning|fabric"
    r"|deepspeed|apex|float64|\.double\(",
    re.IGNORECASE,
)
"""Words of a file that chooses its precision, here or through a library."""


def search(parsed: Parsed) -> Iterator[Said]:
    """The first training loop of a file."""
    if not runs_on_gpu(parsed) or _PRECISION.search(parsed.text.source):
        return
    for place in training_loops(parsed.module)[:1]:
        yield Said(
            place.loop,
            place.symbol,
            "this loop trains in float32, which leaves most of a GPU's matrix rate unused",
            'run forward and loss under `torch.autocast("cuda", dtype=torch.bfloat16)`, and compare the loss',
        )


RULE = Rule(
    "FM104",
    "no-autocast",
    "Train under autocast on a GPU.",
    "https://docs.pytorch.org/docs/stable/amp.html",
    r"\.backward\(",
    saying(search),
)
