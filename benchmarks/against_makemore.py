"""Compare flashmore with makemore, alternating between an unmodified checkout and flashmore.

    python benchmarks/against_makemore.py --makemore PATH --what step|swap|generate|time-to-loss

makemore is Karpathy's name generator, https://github.com/karpathy/makemore. Nothing of it is copied: PATH is
your own checkout, which runs in a separate process. It needs TensorBoard, which flashmore[dev] includes.
"""

import sys
from collections.abc import Callable

import tyro

from comparison import Record, answer
from makemore_generate import compare_generation, report_generation
from makemore_options import Options
from makemore_step import compare_steps, report_steps
from makemore_time_to_loss import compare_times_to_loss, report_times_to_loss

COMPARISONS: dict[str, tuple[Callable[[Options], Record], Callable[[Record], None]]] = {
    "step": (compare_steps, report_steps),
    "swap": (compare_steps, report_steps),
    "generate": (compare_generation, report_generation),
    "time-to-loss": (compare_times_to_loss, report_times_to_loss),
}


def main() -> int:
    """Run the comparison that the options name."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    compare, report = COMPARISONS[options.what]
    return answer(lambda: compare(options), report, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
