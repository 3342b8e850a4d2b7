"""FM106 generation-without-cache: each new token runs the model on the whole sequence again."""

import ast
import re
from collections.abc import Iterator

from flashmore.upgrade.budget import walk
from flashmore.upgrade.rules.advice import Said, saying
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.source.loops import Loop, loops
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import last
from flashmore.upgrade.text import shown

_ATTENTION = re.compile(r"attention|scaled_dot_product", re.IGNORECASE)
_CACHE = re.compile(r"cache|past|kv|start_pos|input_pos|prev_pos|state|hidden", re.IGNORECASE)
"""Words of a loop whose model may keep what it has computed."""
_CACHES = re.compile(r"kv_?cache|use_cache|past_key|key_cache", re.IGNORECASE)
"""Words of a file whose model has a cache, which its other loops may use."""
_DRAWS = ("multinomial", "argmax", "topk", "max")


def search(parsed: Parsed) -> Iterator[Said]:
    """Loops that append a token and give all of them to a model."""
    if not _ATTENTION.search(parsed.text.source) or _CACHES.search(parsed.text.source):
        return
    for place in loops(parsed.module):
        loop = place.loop
        text = parsed.text.of(loop)
        if _CACHE.search(text):
            continue
        drawn = any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _DRAWS
            for node in walk(loop)
        )
        grown = _grown(loop, parsed.module)
        call = _whole(loop, grown, parsed.module) if drawn and grown else None
        if call is not None:
            yield Said(
                call,
                place.symbol,
                f"`{shown(call)}` computes all positions again for each new token",
                "keep the keys and values of earlier positions (a KV cache), so that a step computes one",
            )


def _grown(loop: Loop, module: Module) -> set[str]:
    """The names that `x = torch.cat((x, new), dim=1)` makes longer."""
    found = set()
    for node in walk(loop):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=func, args=[ast.Tuple(elts=parts) | ast.List(elts=parts), *_]),
            ) if module.qualified(func) in ("torch.cat", "torch.concat", "torch.hstack"):
                if isinstance(parts[0] if parts else None, ast.Name) and parts[0].id == name:  # type: ignore[attr-defined]
                    found.add(name)
    return found


def _whole(loop: Loop, grown: set[str], module: Module) -> ast.Call | None:
    """The call of a model on a sequence that grows, or on all of it that fits."""
    names = set(grown)
    for node in walk(loop):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_cut(value, grown):
                names.add(name)
    for node in walk(loop):
        match node:
            case ast.Call(func=ast.Name() | ast.Attribute() as func, args=[first, *_]) if (
                not module.qualified(func)
                and ((isinstance(first, ast.Name) and first.id in names) or _is_cut(first, grown))
                and _is_model(func)
            ):
                return node
    return None


def _is_cut(node: ast.expr, grown: set[str]) -> bool:
    """`x[:, -size:]`, `x if … else x[:, -size:]`: but not `x[:, -1:]`."""
    match node:
        case ast.IfExp(body=body, orelse=orelse):
            return all(_is_cut(each, grown) or _is_one_of(each, grown) for each in (body, orelse))
        case ast.Subscript(
            value=ast.Name(id=name), slice=ast.Tuple(elts=[*_, ast.Slice(lower=lower, upper=None)])
        ):
            last = (
                isinstance(lower, ast.UnaryOp)
                and isinstance(lower.operand, ast.Constant)
                and lower.operand.value == 1
            )
            return name in grown and not last
    return False


def _is_one_of(node: ast.expr, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def _is_model(func: ast.expr) -> bool:
    """`self(x)`, `model(x)`, `self.model(x)`, `net.forward(x)`."""
    name = last(func)
    return (
        name in ("self", "forward")
        or re.search(r"model|net\b|gpt|transformer|decoder|llm", name, re.IGNORECASE) is not None
    )


RULE = Rule(
    "FM106",
    "generation-without-cache",
    "Keep keys and values while generating.",
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html",
    r"\b(cat|concat|hstack)\(",
    saying(search),
)
