"""FM105 no-compile: a script that trains on a GPU without torch.compile."""

import re

from flashmore.upgrade.rules.advice import at_training_loop
from flashmore.upgrade.rules.rule import Rule

_COMPILED = re.compile(
    r"(?<!\bre)\.compile\(|compile=|\bcompile_model|dynamo|torch\.jit|CUDAGraph|accelerat|lightning|fabric|deepspeed",
    re.IGNORECASE,
)
"""Words of a file that compiles its model, here or through a library."""

RULE = Rule(
    "FM105",
    "no-compile",
    "Compile the model that a script trains.",
    "https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
    r"\.backward\(",
    at_training_loop(
        _COMPILED,
        "each operation of the model in this loop is a kernel of its own",
        "`model = torch.compile(model)` before the loop fuses them; the first steps take longer",
    ),
)
