"""Reaching definitions of one function, by Python's own scopes: which bindings each use of a name may see.

Read from the syntax alone, with every kind of statement, and apart from the graph of values: what that graph
does not model shows here. Where the order is not certain (loops, handlers), every binding may be seen.
"""

import ast
from collections.abc import Collection, Iterable, Sequence

from flashmore.upgrade.source.bindings import (
    Binding,
    State,
    Unfollowed,
    Use,
    merged,
    of_scope,
    perhaps,
    unfollowed,
)
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import (
    TYPE_PARAMETERS,
    Function,
    Scope,
    arguments_of,
    bound_by,
    own_nodes,
)

_UNCERTAIN = (
    ast.Break, ast.Continue, ast.Try, ast.TryStar, ast.With, ast.AsyncWith, ast.Match, ast.NamedExpr
)  # fmt: skip
"""What may leave a loop with another binding than its first or its last one."""
Comprehension = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Reaching:
    """Every use of a local name in a function.

    Args:
        function: the function; its nested functions count as captures.
        module: the names of its file.
        dead: statements of branches that are not taken: what follows an `if` does not see what they bind.
    """

    def __init__(self, function: Function, module: Module, dead: Collection[ast.stmt] = ()) -> None:
        self.function = function
        self.module = module
        self.dead = dead
        self.uses: list[Use] = []
        self.tests: list[tuple[ast.expr, bool]] = []
        self.captures: list[tuple[ast.AST, str]] = []
        self.bound: dict[str, set[Binding]] = {}
        state: State = {}
        for argument in arguments_of(function.args):
            self._bind(argument.arg, argument, state)
        self._block(function.body, state)
        for node, name in self.captures:
            self._everywhere(node, name, "captured by a nested function")
        for node in own_nodes(function):
            if isinstance(node, ast.Global):
                for name in node.names:
                    self._everywhere(node, name, "declared global")

    def _everywhere(self, node: ast.AST, name: str, how: str) -> None:
        self.uses.append(Use(node, name, frozenset(self.bound.get(name, ())), frozenset(), (), how))

    def _bind(self, name: str, node: Binding, state: State) -> None:
        state[name] = frozenset((node,))
        self.bound.setdefault(name, set()).add(node)

    def _block(self, body: Sequence[ast.stmt], state: State) -> State | None:
        """The state after some statements; None where they leave the block."""
        now: State | None = state
        depth = len(self.tests)
        for statement in body:
            if now is None:
                break
            now = self._statement(statement, now)
        del self.tests[depth:]
        return now

    def _statement(self, statement: ast.stmt, state: State) -> State | None:
        match statement:
            case ast.If(test=test, body=body, orelse=orelse):
                return self._if(test, body, orelse, state)
            case ast.For() | ast.AsyncFor() | ast.While():
                return self._loop(statement, state)
            case ast.Try() | ast.TryStar():
                return self._try(statement, state)
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                start = dict(state)
                self._visit(items, state)
                end = self._block(body, state)
                if not self.module.may_swallow(items, self.function):
                    return end
                early = self._anything_of([statement], start)
                return early if end is None else merged([end, early])
            case ast.Match(subject=subject, cases=cases):
                self._visit(subject, state)
                ends = []
                for case in cases:
                    inner = dict(state)
                    self._visit((case.pattern, case.guard), inner)
                    state = merged([state, inner])  # it may bind names before it or its guard fails
                    ends.append(self._block(case.body, inner) or {})
                return merged([state, *ends])
            case ast.Return() | ast.Raise() | ast.Break() | ast.Continue():
                self._visit(list(ast.iter_child_nodes(statement)), state)
                return None
        self._visit(statement, state)
        return state

    def _if(
        self, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt], state: State
    ) -> State | None:
        self._visit(test, state)
        ends = []
        for block, holds in ((body, True), (orelse, False)):
            self.tests.append((test, holds))
            ends.append(self._block(block, dict(state)))
            self.tests.pop()
        one, two = (
            None if block and block[0] in self.dead else end
            for block, end in zip((body, orelse), ends, strict=True)
        )
        if one is None or two is None:
            self.tests.append((test, one is not None))  # for what follows in the block
            return two if one is None else one
        return merged([one, two])

    def _anything_of(self, nodes: Iterable[ast.AST], state: State, followed: bool = False) -> State:
        """The state with every binding of some statements added: any of them may have run.

        Args:
            nodes: the statements.
            state: what holds before them.
            followed: whether the graph of values knows all those ways.
        """
        found: dict[str, set[Binding]] = {}
        for outer in nodes:
            for node in own_nodes(outer):
                for name in bound_by(node):
                    found.setdefault(name, set()).add(node)
        result = dict(state)
        for name, bindings in found.items():
            seen = state.get(name, frozenset()) | bindings
            result[name] = seen if followed else unfollowed(seen)
        return result

    def _loop(self, statement: ast.For | ast.AsyncFor | ast.While, state: State) -> State:
        if not isinstance(statement, ast.While):
            self._visit(statement.iter, state)
        followed = not any(isinstance(each, _UNCERTAIN) for each in own_nodes(statement))
        start = self._anything_of([statement], state, followed)
        inner = dict(start)
        self._visit(statement.test if isinstance(statement, ast.While) else statement.target, inner)
        self._block(statement.body, inner)
        self._block(statement.orelse, dict(start))
        return self._anything_of(statement.orelse, start, followed)

    def _try(self, statement: ast.Try | ast.TryStar, state: State) -> State | None:
        ends = [self._block([*statement.body, *statement.orelse], dict(state))]
        broken = self._anything_of(statement.body, state)
        for handler in statement.handlers:
            inner = dict(broken)
            self._visit(handler.type, inner)
            if handler.name:
                self._bind(handler.name, handler, inner)
            ends.append(self._block(handler.body, inner))
            if isinstance(statement, ast.TryStar):  # of which several may run
                broken = self._anything_of([handler], broken)
        self._block(statement.finalbody, self._anything_of([statement], state))
        alive = [each for each in ends if each is not None]
        return self._anything_of(statement.finalbody, merged(alive)) if alive else None

    def _visit(self, node: object, state: State) -> None:
        """Uses and bindings of an expression or a simple statement, in the order of evaluation."""
        if isinstance(node, (list, tuple)):
            for each in node:
                self._visit(each, state)
        elif isinstance(node, ast.Name):
            self._name(node, state)
        elif isinstance(node, (*Scope, ast.ClassDef)):
            self._scope(node, state)
        elif isinstance(node, Comprehension):
            self._comprehension(node, state)
        elif isinstance(node, ast.AugAssign):
            if isinstance(node.target, ast.Name):
                self._read(node.target, state, "read")
                self._visit((node.value, node.target), state)
            else:
                self._visit((node.target, node.value), state)
        elif isinstance(node, ast.AnnAssign):
            stored = node.value is not None or not isinstance(node.target, ast.Name)
            self._visit((node.value, node.target if stored else None, node.annotation), state)
        elif isinstance(node, (ast.Assign, ast.NamedExpr)):
            self._visit((node.value, node.targets if isinstance(node, ast.Assign) else node.target), state)
        elif isinstance(node, (ast.IfExp, ast.BoolOp)):
            self._choice(node, state)
        elif isinstance(node, ast.Compare):
            self._visit((node.left, node.comparators[0]), state)
            self._visit_perhaps(node.comparators[1:], state)
        elif isinstance(node, ast.Assert):
            self._visit(node.test, state)
            self._visit_perhaps(node.msg, state)
        elif isinstance(node, ast.Dict):
            self._visit(list(zip(node.keys, node.values, strict=True)), state)
        elif type(node).__name__ in (*TYPE_PARAMETERS, "TypeAlias"):
            assert isinstance(node, ast.AST)
            self._later(node, ast.walk(node), set())
        elif isinstance(node, ast.AST):
            self._visit(list(ast.iter_child_nodes(node)), state)
            for name in bound_by(node):
                self._bind(name, node, state)

    def _visit_perhaps(self, node: object, state: State) -> None:
        """Visit what may be evaluated or not."""
        inner = dict(state)
        self._visit(node, inner)
        perhaps(state, inner)

    def _later(self, node: ast.AST, inside: Iterable[ast.AST], own: set[str]) -> None:
        """Note what is evaluated at another time, with the names that are its own."""
        names = {each.id for each in inside if isinstance(each, ast.Name)}
        self.captures += [(node, name) for name in sorted(names - own)]

    def _name(self, node: ast.Name, state: State) -> None:
        if isinstance(node.ctx, ast.Store):
            self._bind(node.id, node, state)
            return
        self._read(node, state, "deleted" if isinstance(node.ctx, ast.Del) else "read")
        if isinstance(node.ctx, ast.Del):
            state.pop(node.id, None)

    def _read(self, node: ast.Name, state: State, how: str) -> None:
        if node.id in state:
            seen = state[node.id]
            unfollowed = frozenset(each.binding for each in seen if isinstance(each, Unfollowed))
            bindings = unfollowed | {each for each in seen if not isinstance(each, Unfollowed)}
            self.uses.append(Use(node, node.id, bindings, unfollowed, tuple(self.tests), how))

    def _choice(self, node: ast.IfExp | ast.BoolOp, state: State) -> None:
        if isinstance(node, ast.IfExp):
            self._visit(node.test, state)
            branches: list[tuple[ast.expr, bool, ast.expr]] = [
                (node.test, True, node.body), (node.test, False, node.orelse)
            ]  # fmt: skip
        else:
            self._visit(node.values[0], state)
            holds = isinstance(node.op, ast.And)
            branches = [(node.values[0], holds, each) for each in node.values[1:]]
        start = dict(state)
        for test, holds, branch in branches:
            inner = dict(start)
            self.tests.append((test, holds))
            self._visit(branch, inner)
            self.tests.pop()
            perhaps(state, inner)
            if isinstance(node, ast.BoolOp):
                start = dict(state)

    def _scope(self, node: ast.AST, state: State) -> None:
        """A nested function is run later, a class at once."""
        if isinstance(node, ast.ClassDef):
            self._visit((node.decorator_list, node.bases, node.keywords), state)
            self._block(node.body, dict(state))
            self._bind(node.name, node, state)
            return
        assert isinstance(node, Scope)
        if not isinstance(node, ast.Lambda):
            self._visit(node.decorator_list, state)
        self._visit((node.args.defaults, node.args.kw_defaults), state)
        if not isinstance(node, ast.Lambda):
            annotations = [each.annotation for each in arguments_of(node.args)]
            self._visit((annotations, node.returns, getattr(node, "type_params", None)), state)
        body = node.body if isinstance(node.body, list) else [node.body]
        inside = [each for statement in body for each in ast.walk(statement)]
        declared = [each for each in inside if isinstance(each, (ast.Nonlocal, ast.Global))]
        shared = {name for each in declared for name in each.names}
        own = {each.arg for each in arguments_of(node.args)}
        own |= {n for statement in body for each in of_scope(statement) for n in bound_by(each)}
        self._later(node, inside, own - shared)
        self.captures += [(node, name) for name in sorted(shared)]
        if not isinstance(node, ast.Lambda):
            self._bind(node.name, node, state)

    def _comprehension(self, node: ast.AST, state: State) -> None:
        assert isinstance(node, Comprehension)
        first = node.generators[0].iter
        self._visit(first, state)
        inner = dict(state)
        targets = {n for g in node.generators for each in ast.walk(g.target) for n in bound_by(each)}
        for generator in node.generators:
            self._visit((generator.iter if generator.iter is not first else None, generator.target), inner)
            self._visit(generator.ifs, inner)
        self._visit((node.key, node.value) if isinstance(node, ast.DictComp) else node.elt, inner)
        perhaps(state, {name: found for name, found in inner.items() if name not in targets})
        if isinstance(node, ast.GeneratorExp):
            at_once = {id(each) for each in ast.walk(first)}
            self._later(node, (each for each in ast.walk(node) if id(each) not in at_once), targets)
