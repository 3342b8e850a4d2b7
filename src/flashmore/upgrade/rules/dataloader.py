"""FM101 dataloader-without-workers: items that are read or decoded between two steps, in the same process."""

import ast
import re
from collections.abc import Iterator

from flashmore.upgrade.budget import walk
from flashmore.upgrade.rules.advice import Said, saying
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.source.called import Called, calls
from flashmore.upgrade.source.module import Module

_LOADER = re.compile(r"torch\.utils\.data\.(dataloader\.)?DataLoader")
_POSITION = 5
"""Of num_workers, without its name."""
_SLOW = re.compile(
    r"open|imread|imdecode|read_image|decode_\w+|read_file|load|loads|read_csv|read_parquet|\w*[tT]okeniz\w+"
    r"|transforms?|encode_plus|resample|resize"
)
"""Functions and methods that take time for each item: files, images, sound, tokens."""
_OF_TORCHVISION = re.compile(r"torchvision\.datasets\.(\w+\.)?[A-Z]\w+")
_MAY_USE_GPU = re.compile(r"cuda|\bxpu\b|\bmps\b|device|accelerat|lightning|fabric|deepspeed", re.IGNORECASE)


def search(parsed: Parsed) -> Iterator[Said]:
    """Loaders that make costly items themselves, and those that pin memory for no GPU."""
    for called in calls(parsed.module):
        if not _LOADER.fullmatch(called.full):
            continue
        named = {each.arg: each.value for each in called.node.keywords}
        if None in named:
            continue
        pinned = named.get("pin_memory")
        if _is(pinned, True) and not _MAY_USE_GPU.search(parsed.text.source):
            reason = "`pin_memory=True` copies every batch once more, and nothing in this file uses a GPU"
            yield Said(called.node, called.symbol, reason, "leave `pin_memory` out")
        workers = named.get("num_workers") or next(iter(called.node.args[_POSITION:]), None)
        if workers is not None and not _is(workers, 0):
            continue
        given = called.node.args[0] if called.node.args else named.get("dataset")
        costly = _costly(parsed.module, called, given)
        if costly is not None:
            reason = f"{costly} for each item in the process that trains, between two steps"
            yield Said(
                called.node, called.symbol, reason, "`num_workers=2` or more loads the next batches meanwhile"
            )


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _costly(module: Module, called: Called, given: ast.expr | None) -> str | None:
    """What a dataset of this file does for each item that takes time; None where that is not known."""
    if isinstance(given, ast.Name):
        given = _only_value(called.within[-1] if called.within else module.tree, given.id)
    if not isinstance(given, ast.Call):
        return None
    full = module.qualified(given.func)
    if _OF_TORCHVISION.fullmatch(full):
        return f"`{full.rsplit('.', 1)[-1]}` decodes and transforms"
    made = module.classes.get(given.func.id) if isinstance(given.func, ast.Name) else None
    method = made.method("__getitem__") if made is not None else None
    for node in walk(method) if method is not None else ():
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if _SLOW.fullmatch(name):
                return f"`{name}` runs"
    return None


def _only_value(scope: ast.AST, name: str) -> ast.expr | None:
    """What a name is assigned, where that happens once."""
    found = [
        node.value
        for node in walk(scope)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
    return found[0] if len(found) == 1 else None


RULE = Rule(
    "FM101",
    "dataloader-without-workers",
    "Load batches in worker processes while the model trains.",
    "https://docs.pytorch.org/docs/stable/data.html#single-and-multi-process-data-loading",
    r"DataLoader",
    saying(search),
)
