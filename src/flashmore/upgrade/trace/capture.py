"""Catch what the lines of a site are really given while someone's program runs.

The program is watched by `sys.settrace`, in the functions that hold a site alone. When a line of the site is
about to run, every input that has a value by then is copied: the first value counts, because later lines may
change it in place.
"""

import ast
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

MOST_SEEN = 3
"""Different shapes or modes that are kept of one site."""
LARGEST = 2**28
"""Numbers in all tensors of one call that are kept; a larger call is passed over."""
READABLE = (
    ast.Expression, ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.Load, ast.Slice, ast.Tuple,
    ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop,
)  # fmt: skip
"""An input's expression is evaluated once more while the program runs, so it must do nothing but read."""
CALLED = frozenset(
    ("size", "dim", "numel", "item", "any", "all", "sqrt", "pow", "exp", "log", "float", "int", "bool", "len",
     "abs", "min", "max", "isinstance", "hasattr", "getattr")
)  # fmt: skip
"""Functions and methods that only read."""
PLAIN = (int, float, bool, str, type(None))

Tracer = Callable[[FrameType, str, Any], Any]


class NotCaught(Exception):
    """A value that cannot be kept; the message says which."""


@dataclass
class Watched:
    """A site that is waited for."""

    path: str
    """Resolved."""
    line: int
    end_line: int
    inputs: Sequence[tuple[str, str]]
    """Names, and the user's expressions."""
    calls: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    why_not: str | None = None
    """Why a call was passed over, the last time."""

    def __post_init__(self) -> None:
        self.codes = [(name, _readable(source)) for name, source in self.inputs]
        unread = [
            source for (_, code), (_, source) in zip(self.codes, self.inputs, strict=True) if code is None
        ]
        if unread:
            self.why_not = f"{unread[0]} does more than read a value"


class Catcher:
    """Watches a program; use it as a context around whatever runs it.

    Args:
        watched: the sites.
        after_catch: is told the number of a site of which something new was seen.
    """

    def __init__(self, watched: Sequence[Watched], after_catch: Callable[[int], None]) -> None:
        self.watched = watched
        self.after_catch = after_catch
        self.by_code: dict[CodeType, list[int]] = {}
        self.resolved: dict[str, str] = {}

    def __enter__(self) -> "Catcher":
        threading.settrace(self._called)
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _called(self, frame: FrameType, _event: str, _argument: Any) -> Tracer | None:
        code = frame.f_code
        if code not in self.by_code:
            self.by_code[code] = self._sites_in(code)
        sites = self.by_code[code]
        if not sites:
            return None
        return _Visit(self, sites).trace

    def _sites_in(self, code: CodeType) -> list[int]:
        if code.co_name == "<module>":
            return []
        name = code.co_filename
        if name not in self.resolved:
            self.resolved[name] = str(Path(name).resolve())
        lines = {line for _, _, line in code.co_lines() if line is not None}
        return [
            number
            for number, site in enumerate(self.watched)
            if site.path == self.resolved[name] and lines & set(range(site.line, site.end_line + 1))
        ]


class _Visit:
    """One call of a function that holds sites."""

    def __init__(self, catcher: Catcher, sites: Sequence[int]) -> None:
        self.catcher = catcher
        self.caught: dict[int, dict[str, Any]] = {number: {} for number in sites}
        self.counted: set[int] = set()

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Tracer | None:
        if event == "line":
            for number, caught in list(self.caught.items()):
                site = self.catcher.watched[number]
                if site.line <= frame.f_lineno <= site.end_line:
                    self._read(number, site, caught, frame)
        return self.trace

    def _read(self, number: int, site: Watched, caught: dict[str, Any], frame: FrameType) -> None:
        if number not in self.counted:
            self.counted.add(number)
            site.calls += 1
        if len(site.seen) >= MOST_SEEN:
            del self.caught[number]
            return
        try:
            for name, code in site.codes:
                if name not in caught and code is not None:
                    try:
                        value = eval(code, frame.f_globals, frame.f_locals)  # reads and no more
                    except (NameError, UnboundLocalError):
                        continue  # a later line of the site makes it
                    caught[name] = kept(value)
        except (NotCaught, AttributeError, KeyError, IndexError, TypeError) as error:
            site.why_not = f"{name}: {error}"
            del self.caught[number]
            return
        if len(caught) == len(site.inputs):
            del self.caught[number]
            self._keep(number, site, caught)

    def _keep(self, number: int, site: Watched, caught: dict[str, Any]) -> None:
        tensors = [value for value in caught.values() if isinstance(value, Tensor)]
        if sum(tensor.numel() for tensor in tensors) > LARGEST:
            site.why_not = "its tensors are too large to keep"
            return
        one = {"inputs": caught, "autocast": _autocast()}
        if all(_signature(one) != _signature(other) for other in site.seen):
            site.seen.append(one)
            self.catcher.after_catch(number)


def kept(value: Any) -> Any:
    """A copy that outlives the program: tensors on the CPU, modules as what they hold.

    Raises:
        NotCaught: a value of another kind.
    """
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter):
            raise NotCaught(f"a {type(value).__name__}")
        return value.detach().to("cpu", copy=True)
    if isinstance(value, nn.Dropout):
        return {"kind": "dropout", "p": value.p, "training": value.training}
    if isinstance(value, nn.Identity):
        return {"kind": "dropout", "p": 0.0, "training": value.training}
    if isinstance(value, nn.Softmax):
        return {"kind": "softmax", "dim": value.dim}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (tuple, list)):
        return [kept(item) for item in value]
    if hasattr(value, "item"):  # a number of numpy's
        return value.item()
    raise NotCaught(f"a {type(value).__name__}")


def _readable(source: str) -> CodeType | None:
    tree = ast.parse(source, mode="eval")
    if not all(isinstance(node, READABLE) or _only_reads(node) for node in ast.walk(tree)):
        return None
    return compile(tree, "<input>", "eval")


def _only_reads(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in CALLED
        case ast.keyword():
            return True
    return False


def _autocast() -> str | None:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return str(torch.get_autocast_dtype(device)).removeprefix("torch.")
    return None


def _signature(one: dict[str, Any]) -> tuple[Any, ...]:
    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple(value.shape), str(value.dtype)
        if isinstance(value, dict):
            return tuple(sorted(value.items()))
        return str(value) if isinstance(value, list) else value

    return one["autocast"], tuple((name, of(value)) for name, value in sorted(one["inputs"].items()))
