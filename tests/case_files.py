"""The case files of the rules of `upgrade`."""

import re
from dataclasses import dataclass
from pathlib import Path

CASES = Path(__file__).parent / "upgrade" / "cases"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANSWER = re.compile(r"^> (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One section of a case file."""

    name: str
    before: str
    after: str | None
    answer: str


def cases() -> list[Case]:
    """All of them, file by file."""
    found = []
    for path in sorted(CASES.glob("*.md")):
        for section in re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            title = section.split("\n", 1)[0]
            blocks = BLOCK.findall(section)
            answer = ANSWER.search(section)
            assert blocks, f"{path.name}: {title} has no code"
            assert answer, f"{path.name}: {title} has no answer"
            found.append(
                Case(f"{path.stem}: {title}", blocks[0], blocks[1] if len(blocks) > 1 else None, answer[1])
            )
    return found
