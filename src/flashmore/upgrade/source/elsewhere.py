"""What the names of one file stand for in others, as the search sees it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flashmore.upgrade.source.module import Module


@dataclass(frozen=True)
class Found:
    """A definition of another file: its module, and its name there."""

    module: "Module"
    name: str


class Elsewhere(Protocol):
    """The definitions of other files; see `project/definitions.py`."""

    def find(self, importer: Path | None, full: str) -> Found | str | None:
        """What a full name of an import is: a definition, or its name in a library."""

    def exports(self, module: "Module", name: str, symbol: str) -> bool:
        """Whether other files mention a function's name, or a package passes its class on."""

    def reads(self, name: str) -> bool:
        """Whether another file may read a variable of the file, since it mentions both."""

    def starred(self, module: "Module", name: str) -> Found | str | None:
        """What a name is that a module imports with a star."""
