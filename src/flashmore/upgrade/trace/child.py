"""The process in which the user's own program runs and is watched: what was named, and no more."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmore.upgrade.isolated import end_with_parent

if TYPE_CHECKING:
    from flashmore.upgrade.trace.capture import Catcher

STATUS = "status.json"


def main(argv: list[str]) -> int:
    """Watch an example or a script.

    Args:
        argv: the process to end with, and a JSON file with `sites`, `rewritten` (paths to new sources),
            `example`, `run` and `folder`. What is seen of site n is written to `folder/n.pt` as soon as it is
            seen; `folder/status.json` comes last.
    """
    end_with_parent(int(argv[0]))
    import torch

    from flashmore.upgrade.trace.capture import Catcher, Watched
    from flashmore.upgrade.trace.user import UserCodeFailed

    request = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    folder = Path(request["folder"])
    watched = [Watched(**site) for site in request["sites"]]

    def keep(number: int) -> None:
        unfinished = folder / f"{number}.new"
        torch.save(watched[number].seen, unfinished)
        unfinished.replace(folder / f"{number}.pt")

    status: dict[str, Any] = {"problem": None, "whole": None}
    try:
        status["whole"] = _run(request, Catcher(watched, keep))
    except UserCodeFailed as failed:
        status["problem"] = str(failed)
    status["why_not"] = [site.why_not for site in watched]
    status["calls"] = [site.calls for site in watched]
    (folder / STATUS).write_text(json.dumps(status), encoding="utf-8")
    return 0


def _run(request: dict[str, Any], catcher: "Catcher") -> dict[str, Any] | None:
    """Run the example or the script; of an example with other sources, compare the results of both."""
    from flashmore.upgrade.trace.user import UserCodeFailed, load_example, run_script, told
    from flashmore.upgrade.trace.whole import compare_whole

    if request["example"] is None:
        with catcher:
            run_script(request["run"])
        return None
    example = load_example(request["example"])
    with catcher:
        try:
            example()
        except Exception as error:  # noqa: BLE001 - the user's model may raise anything
            raise UserCodeFailed(told(error)) from None
    return asdict(compare_whole(example, request["rewritten"])) if request["rewritten"] else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
