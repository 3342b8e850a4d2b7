"""FM105 no-compile: a script that trains on a GPU without torch.compile."""

import re
from collections.abc import Iterator

from flashmore.upgrade.rules.advice import Said, runs_on_gpu, saying
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.source.loops import training_loops

_COMPILED = re.compile(
    r"(?<!\bre)\.compile\(|compile=|\bcompile_model|dynamo|torch\.jit|CUDAGraph|accelerat|lightning|fabric|deepspeed",
    re.IGNORECASE,
)
"""Words of a file that compiles its model, here or through a library."""


def search(parsed: Parsed) -> Iterator[Said]:
    """The first training loop of a file."""
    if not runs_on_gpu(parsed) or _COMPILED.search(parsed.text.source):
        return
    for place in training_loops(parsed.module)[:1]:
        yield Said(
            place.loop,
            place.symbol,
            "each operation of the model in this loop is a kernel of its own",
            "`model = torch.compile(model)` before the loop fuses them; the first steps take longer",
        )


RULE = Rule(
    "FM105",
    "no-compile",
    "Compile the model that a script trains.",
    "https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
    r"\.backward\(",
    saying(search),
)
