"""The catalogue of speed-ups as a table."""

from flashmore.speedups import CATALOGUE, Entry

HEAD = "| name | what | where the time goes without it | how | devices | exactness | costs | shown by |"


def table() -> str:
    """Every entry, in the order in which the ablation adds them."""
    rows = [HEAD, "|" + " --- |" * (HEAD.count("|") - 1)]
    return "\n".join(rows + [_row(name, entry) for name, entry in CATALOGUE.items()]) + "\n"


def _row(name: str, entry: Entry) -> str:
    cells = (
        f"`{name}`",
        f"[{entry.title}]({entry.page})",
        entry.why,
        f"`{entry.how(name)}`" if not entry.always else "always on",
        ", ".join(entry.devices),
        entry.exactness,
        entry.costs,
        f"`{entry.test}`",
    )
    return f"| {' | '.join(cells)} |"
