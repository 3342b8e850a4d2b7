"""Names that were bound before an edit and are not afterwards, or have another value: nobody may use them."""

import ast
import builtins
import re
from functools import lru_cache

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import step
from flashmore.upgrade.checks.between import Later
from flashmore.upgrade.checks.effects import effects
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.site import Edit
from flashmore.upgrade.source.bindings import Binding, Use
from flashmore.upgrade.source.escape import fact, stripped
from flashmore.upgrade.source.functions import why_seen
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.reaching import Reaching
from flashmore.upgrade.source.scopes import (
    MODULE,
    SEE_LOCALS,
    claimed_by,
    defaults_of,
    heads,
    is_private,
    is_self,
    own_nodes,
)

ADVICE = "remove that use if it is not needed"
_WITHOUT_ARGUMENTS = {"vars", "dir"}
_FRAMES = {"_getframe", "_current_frames", "currentframe", "f_locals", "f_back", "tb_frame"}
_STACKS = {"stack", "trace", "getouterframes", "getinnerframes"}
_FOLLOWED = (ast.Name, ast.arg, ast.FunctionDef, ast.AsyncFunctionDef)
"""Bindings that the graph of values knows, where it knows their statement."""
_JOINS = ("phi", "loop", "carried", "missing")
"""Values that no expression makes."""


def check_names(rewriting: Rewriting) -> None:
    """Whether what is left of a function still finds every name with the value that it had.

    Args:
        rewriting: the rewriting.

    Raises:
        Refuse: something uses a name that falls away, or may look at all names.
    """
    found = rewriting.found
    _refuse_onlookers(found)
    _refuse_shadowing(found)
    _refuse_seen(rewriting)
    names = _Names(rewriting, [edit for edit in rewriting.edits() if edit.end > edit.start])
    for use in names.uses:
        names.check(use)
    for moved in rewriting.emission.read:
        names.check_moved(moved)
    _refuse_shared_branch(rewriting)


class _Names:
    def __init__(self, rewriting: Rewriting, edits: list[Edit]) -> None:
        self.found = rewriting.found
        self.flow = rewriting.found.flow
        self.text = rewriting.text
        self.blocks = rewriting.blocks
        self.edits = edits
        block, first, _ = rewriting.region()
        self.start = self.text.span(block[first])[0]
        self.own_names = {name for each in own_nodes(self.flow.function) for name in claimed_by(each)}
        self.ruled_out = rewriting.ruled_out
        declared = [
            each for each in ast.walk(self.flow.function) if isinstance(each, (ast.Nonlocal, ast.Global))
        ]
        self.shared = {name: each.lineno for each in declared for name in each.names}
        for generator in ast.walk(self.flow.function):  # which may bind a name at any later time
            if isinstance(generator, ast.GeneratorExp):
                inside = (each for each in ast.walk(generator) if isinstance(each, ast.NamedExpr))
                self.shared |= {each.target.id: each.lineno for each in inside}
        final = self.found.final.statement
        end = final.lineno if final is not None else 0
        dead = {each for each in self.blocks.places if id(each) in self.ruled_out and each.lineno < end}
        self.uses = Reaching(self.flow.function, self.flow.module, dead).uses
        written = [each for each in self.found.chain if each.node is not None and each.op not in _JOINS]
        touched = {value.statement for value in written}
        self.touched = {each for each in touched | rewriting.emission.removed if each not in (None, final)}
        self.inside = {id(node) for each in self.touched if each is not None for node in ast.walk(each)}
        self.undeleted = {
            id(one) for each, left in rewriting.undeleted.items() for one in each.targets if one not in left
        }
        self.kept = {fact(each.opposite(), self.flow.tests) for each in rewriting.guards}
        self.followed = {id(node) for statement in self.flow.before for node in heads(statement)}

    def check(self, use: Use) -> None:
        """Refuse a use that does not see what it saw."""
        if id(use.node) in self.undeleted:
            return
        touched = id(use.node) in self.inside or self._is_edited(use.node)
        if touched and use.how == "read":
            if use.name in self.shared:
                line = self.shared[use.name]
                raise Refuse(
                    f"`{use.name}` may be changed by any call, because line {line} shares it between scopes"
                )
            strange = [
                getattr(each, "lineno", 0)
                for each in use.bindings
                if each in use.unfollowed or not self._is_followed(each)
            ]
            if strange:
                raise Refuse(
                    f"`{use.name}` may be changed in line {max(strange)}, on a way that is not followed"
                )
            return
        if (
            test := next((each for each, holds in use.tests if self._is_kept(each, holds)), None)
        ) is not None:
            if any(map(self._is_edited, use.bindings)):
                self._check_asked_again(test)
            return
        line = getattr(use.node, "lineno", 0)
        known = use.how == "deleted" or (use.how == "read" and use.node in self.flow.seen)  # bound is enough
        seen = use.bindings - use.unfollowed if known else ()
        lost = [each for each in use.bindings if id(each) not in self.ruled_out]
        if any(not self._remains(each, use.name, each in seen) for each in lost):
            raise Refuse(f"`{use.name}` would be removed, but is {use.how} in line {line}", ADVICE)
        changed = any(id(each) in self.inside and each not in seen for each in use.bindings)
        if changed and use.how != "deleted":
            raise Refuse(f"`{use.name}` would get a different value, but is {use.how} in line {line}", ADVICE)

    def check_moved(self, moved: ast.expr) -> None:
        """Refuse an operand whose names are bound on the way to its new place, unseen by the graph."""
        if self.found.final.node is None:
            return
        start, end = self.text.span(moved)[1], self.text.span(self.found.final.node)[0]
        names = {node.id for node in ast.walk(moved) if isinstance(node, ast.Name)}
        for node in own_nodes(self.flow.function):
            if names.isdisjoint(claimed_by(node)) or not hasattr(node, "lineno") or self._is_followed(node):
                continue
            if start <= self.text.span(node)[0] < end:
                name = min(names.intersection(claimed_by(node)))
                raise Refuse(f"`{name}` may be changed in line {node.lineno}, on a way that is not followed")

    def _remains(
        self, binding: Binding, name: str, seen: bool, before: frozenset[Binding] = frozenset()
    ) -> bool:
        """Whether a use finds the name bound: where only `x = f(x)` falls away, by what x was before.

        The graph of values has told whether the other value will do, which it can for what it has `seen`.
        """
        if not self._is_edited(binding):
            return True
        if not seen or binding in before:
            return seen
        statement = next(
            (each for each in self.touched if each and any(n is binding for n in heads(each))), None
        )
        inside = {id(node) for node in heads(statement)} if statement is not None else set()
        earlier = [use for use in self.uses if use.name == name and id(use.node) in inside]
        return bool(earlier) and all(
            self._remains(each, name, each not in use.unfollowed, before | {binding})
            for use in earlier
            for each in use.bindings
        )

    def _is_edited(self, node: ast.AST) -> bool:
        if not hasattr(node, "end_lineno"):
            return False
        start, end = self.text.span(node)
        return any(edit.start <= start and end <= edit.end for edit in self.edits)

    def _is_followed(self, binding: Binding) -> bool:
        return isinstance(binding, _FOLLOWED) and (
            isinstance(binding, ast.arg) or id(binding) in self.followed
        )

    def _is_kept(self, test: ast.expr, holds: bool) -> bool:
        """Whether the old lines run wherever a test has this answer."""
        return fact(self.flow.condition(test, holds), self.flow.tests) in self.kept

    def _check_asked_again(self, test: ast.expr) -> None:
        """Refuse a test behind the guard that may have another answer there."""
        final = self.found.final.node
        if final is None or self.text.span(test)[0] < self.text.span(final)[0] or self._is_fixed(test):
            return
        end = self.text.span(test)[0]
        later = Later([test], self.flow, self.blocks)
        of_self = {each.id for each in ast.walk(test) if isinstance(each, ast.Name)} == {"self"}
        kept = {
            id(node)
            for each in ast.walk(self.flow.function)
            if isinstance(each, ast.If)
            for branch, holds in ((each.body, True), (each.orelse, False))
            if self._is_kept(each.test, holds)
            for one in branch
            for node in ast.walk(one)
        }
        for said, node in effects(self.flow.function, self.flow.module):
            between = self.start <= self.text.span(node)[1] <= end
            if of_self and not any(map(is_self, ast.walk(node))):
                continue  # it is not given the object
            what = later.disturbed_by(node) if between and id(node) not in kept | self.ruled_out else ""
            if what:
                where = f"`{said}` in line {getattr(node, 'lineno', 0)}"
                raise Refuse(f"{where} {what}, which the guard and line {test.lineno} ask for")

    def _is_fixed(self, test: ast.expr) -> bool:
        """Whether no call can change the answer to a test: whether a name is None, or an argument is true."""
        match stripped(test)[0]:
            case ast.Compare(ast.Name(id=name), [ast.Is() | ast.IsNot()], [ast.Constant(None)]):
                return name in self.own_names and name not in self.shared
            case ast.Name(id=name):
                default = defaults_of(self.flow.function.args).get(name)
                return isinstance(default, ast.Constant) and isinstance(default.value, (bool, int))
        return False


def _refuse_shared_branch(rewriting: Rewriting) -> None:
    """Refuse a guard around an `if` whose other branch, which would be repeated there, uses the weights."""
    found = rewriting.found
    statement = found.final.statement
    for inner in rewriting.blocks.ancestors(statement) if statement is not None else ():
        place = rewriting.blocks.places[inner]
        if not isinstance(place.parent, ast.If) or rewriting.found.live(place.parent) is None:
            continue
        other = place.parent.orelse if place.block is place.parent.body else place.parent.body
        names = (each for one in other for each in ast.walk(one) if isinstance(each, ast.Name))
        line = place.parent.lineno
        if line >= rewriting.region()[0][rewriting.region()[1]].lineno and any(
            found.flow.seen.get(each) in found.chain for each in names
        ):
            raise Refuse(
                f"both branches of the `if` in line {line} use the weights",
                "return in one of them, and compute the other one after the `if`",
            )


def _refuse_onlookers(found: Attention) -> None:
    """Refuse what may look at every name of the function, whichever they are."""
    harmless: set[ast.expr] = set()
    """`vars(x)` and `dir(x)` tell of x alone; a call is seen before its name."""
    for node in ast.walk(found.flow.function):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[_, *_]) if name in _WITHOUT_ARGUMENTS:
                harmless.add(node.func)
            case ast.Name(id=name) if name in SEE_LOCALS and node not in harmless:
                raise Refuse(f"`{name}` in line {node.lineno} may read names that would be removed", ADVICE)
    _refuse_private(found)
    if (of_frames := _reads_frames(found.flow.module)) is not None:
        name, line = of_frames
        raise Refuse(f"`{name}` in line {line} may read the local variables of a running function", ADVICE)


def _refuse_seen(rewriting: Rewriting) -> None:
    """Refuse a file's own lines where other code may read the names that they bind."""
    flow = rewriting.found.flow
    block, first, last = rewriting.region()
    if flow.function.name == MODULE and (why := why_seen(flow.module, block[first : last + 1])) is not None:
        raise Refuse(why, ADVICE)


def _refuse_shadowing(found: Attention) -> None:
    """Refuse where an enclosing function rebinds a name of the module or a builtin that is used."""
    function, module = found.flow.function, found.flow.module
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    used |= {
        "max",
        *(name for name, full in module.imports.items() if full.startswith("torch")),
    }  # in the call
    for outer in found.flow.enclosing:
        for node in own_nodes(outer):
            claimed = set(claimed_by(node)) if node is not outer else set()
            shadowed = claimed & used & (module.meanings.keys() | set(dir(builtins)))
            if shadowed:
                name, line = min(shadowed), getattr(node, "lineno", outer.lineno)
                raise Refuse(
                    f"`{name}` has another meaning in the enclosing function: see line {line}",
                    "rename that one",
                )


def _refuse_private(found: Attention) -> None:
    """Refuse private names: in class A, `__w` is `_A__w`. Attributes count where the file has both forms."""
    mangled = {each for each in found.flow.module.attributes if re.match("_[^_]", each)}
    for node in ast.walk(found.flow.function):
        names = {node.id} if isinstance(node, ast.Name) else set(claimed_by(node))
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            step(len(mangled))
            names = {node.attr for each in mangled if each.endswith(node.attr)}
        if (private := next(filter(is_private, names), None)) is not None:
            line = getattr(node, "lineno", 0)
            raise Refuse(
                f"`{private}` in line {line} is a private name of its class",
                "start its name with a single underscore",
            )


@lru_cache(maxsize=1)  # of the file that is searched, not once for each of its places
def _reads_frames(module: Module) -> tuple[str, int] | None:
    """A name of the file that leads to the frames of running functions, and its line."""
    stacks = {f"inspect.{each}" for each in _STACKS}
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Attribute, ast.Name)):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in _FRAMES or module.qualified(node) in stacks:
                return name, node.lineno
    return None
