"""FM104 no-autocast: a loop that trains on a GPU in float32, without TF32."""

import re

from flashmore.upgrade.rules.advice import at_training_loop
from flashmore.upgrade.rules.rule import Rule

_PRECISION = re.compile(
    r"autocast|\bamp\b|bfloat16|bf16|float16|fp16|\.half\(|precision|tf32|GradScaler|accelerat|lightning|fabric"
    r"|deepspeed|apex|float64|\.double\(",
    re.IGNORECASE,
)
"""Words of a file that chooses its precision, here or through a library."""

RULE = Rule(
    "FM104",
    "no-autocast",
    "Train under autocast on a GPU.",
    "https://docs.pytorch.org/docs/stable/amp.html",
    r"\.backward\(",
    at_training_loop(
        _PRECISION,
        "this loop trains in float32, which leaves most of a GPU's matrix rate unused",
        'run forward and loss under `torch.autocast("cuda", dtype=torch.bfloat16)`, and compare the loss',
    ),
)
