"""The statements of one function, read as a graph of values: every branch, without running anything."""

import ast
from collections.abc import Sequence

from flashmore.upgrade.budget import step, walk
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.expressions import Expressions
from flashmore.upgrade.source.graph import Closure, Condition, Value
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import Function, arguments_of, bound_by, own_nodes


class Flow(Expressions):
    """What a function computes.

    Args:
        module: the names of its file.
        owner: the class that it is a method of.
        function: the function to read.
        enclosing: the functions that it is nested in, whose names it sees as if they were its arguments.
    """

    def __init__(
        self, module: Module, owner: Class | None, function: Function, enclosing: Sequence[Function] = ()
    ) -> None:
        super().__init__(module, owner)
        self.function = function
        self.enclosing = enclosing
        self.before: dict[ast.stmt, dict[str, Value]] = {}
        self.after: dict[ast.stmt, dict[str, Value]] = {}

    def run(self) -> "Flow":
        """Reads the function."""
        for outer in self.enclosing:
            for node in own_nodes(outer):
                for name in bound_by(node) if node is not outer else ():
                    self.env[name] = self.make("param", detail=name, node=node)
            for each in arguments_of(outer.args):
                self.env[each.arg] = self.make("param", detail=each.arg, node=each)
        if self.owner is not None and "self" in self.env:
            self.env["self"] = Value("self", detail="self")
        arguments = self.function.args
        for index, each in enumerate([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]):
            if index == 0 and self.owner is not None and each.arg == "self":
                self.env["self"] = Value("self", detail="self")
            else:
                self.env[each.arg] = self.make("param", detail=each.arg, node=each)
        for rest in (arguments.vararg, arguments.kwarg):
            if rest is not None:
                self.env[rest.arg] = self.make("param", detail=rest.arg, node=rest)
        self.block(self.function.body)
        return self

    def block(self, body: Sequence[ast.stmt]) -> bool:
        """Reads statements in order; says whether the block is left for good."""
        added = 0
        for statement in body:
            step(len(self.env))
            if not self.inner:
                self.statement = statement
                self.before[statement] = dict(self.env)
            ended = self.one(statement)
            if not self.inner:
                self.after[statement] = dict(self.env)
            if ended:
                del self.conditions[len(self.conditions) - added :]
                return True
            if isinstance(statement, ast.If) and (later := self._leaving(statement)):
                self.conditions.append(later)
                added += 1
        del self.conditions[len(self.conditions) - added :]
        return False

    def _leaving(self, statement: ast.If) -> Condition | None:
        """The condition of all that follows an `if` that leaves the block."""
        if _leaves(statement.body):
            return self.condition(statement.test, False)
        if statement.orelse and _leaves(statement.orelse):
            return self.condition(statement.test, True)
        return None

    def one(self, statement: ast.stmt) -> bool:
        """Reads one statement; says whether it leaves the block."""
        match statement:
            case ast.Assign(targets=targets, value=value):
                result = self.expression(value)
                for target in targets:
                    self.assign(target, result)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self.assign(target, self.expression(value))
            case ast.AugAssign():
                self.augmented(statement)
            case ast.Expr(value=value):
                self.expression(value)
            case ast.Return(value=value):
                self._return(value)
                return True
            case ast.If():
                return self._if(statement)
            case ast.For() | ast.AsyncFor() | ast.While():
                self._loop(statement)
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                return self._with(statement, items, body)
            case ast.Try() | ast.TryStar():
                return self._try(statement)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                closure = Closure(statement, self.module, self.env)
                self.env[statement.name] = self.make("closure", detail=closure)
            case ast.Raise() | ast.Continue() | ast.Break():
                self._rest(statement)
                return True
            case _:
                self._rest(statement)
        return False

    def _sized(self, test: Value, op: str) -> None:
        """`assert x.size() == (b, l, s)`, and `if x.shape != (b, l, s): raise`."""
        if test.op != op or len(test.args) != 2:
            return
        for one, two in (test.args, test.args[::-1]):
            if one.op == "call" and one.detail in ("list", "tuple") and len(one.args) == 2:
                one = one.args[1]
            if one.op in ("size", "attr:shape") and len(one.args) == 1 and two.op == "tuple":
                self.sized.append((one.args[0], two))

    def _rest(self, statement: ast.stmt) -> None:
        """Any other statement: what it mentions is used by something unknown."""
        if isinstance(statement, ast.Delete):
            for name in (each.id for target in statement.targets for each in _names(target)):
                self.env.pop(name, None)
            return
        used = [
            self.expression(each) for each in ast.iter_child_nodes(statement) if isinstance(each, ast.expr)
        ]
        if isinstance(statement, ast.Assert):
            self._sized(used[0], "eq")
        op = "assert" if isinstance(statement, (ast.Assert, ast.Raise)) else "statement"
        self.make(op, tuple(used), node=statement)

    def _return(self, node: ast.expr | None) -> None:
        value = self.expression(node) if node is not None else self.make("const", detail=None)
        if self.inner:
            self.returned[-1].append((tuple(self.conditions), value))
        else:
            self.make("return", (value,), node=node)

    def _if(self, statement: ast.If) -> bool:
        test, condition = self.asked(statement.test)
        start, ranks = dict(self.env), dict(self.ranks)
        self.conditions.append(condition)
        ended = self.block(statement.body)
        then = dict(self.env)
        self._replace(start)
        self.conditions[-1] = self.condition(statement.test, False)
        other_ended = self.block(statement.orelse)
        self.conditions.pop()
        otherwise = dict(self.env)
        if _asks_rank(statement.test):  # sizes that are taken apart in a branch tell of that branch alone
            self.ranks = ranks
        if statement.body and isinstance(statement.body[-1], ast.Raise):
            self._sized(test, "ne")
        if ended and other_ended:
            return True
        if ended or other_ended:
            self._replace(otherwise if ended else then)
        else:
            self._merge(condition, then, otherwise)
        return False

    def _replace(self, env: dict[str, Value]) -> None:
        self.env.clear()
        self.env.update(env)

    def _merge(self, condition: Condition, then: dict[str, Value], otherwise: dict[str, Value]) -> None:
        merged = dict(otherwise)
        for name in {**then, **otherwise}:
            one, two = then.get(name), otherwise.get(name)
            if one is not two:
                one = one or self.make("missing")
                two = two or self.make("missing")
                merged[name] = self.make("phi", (one, two), detail=condition)
            elif one is not None:
                merged[name] = one
        self._replace(merged)

    def _loop(self, statement: ast.For | ast.AsyncFor | ast.While) -> None:
        """A body that runs any number of times: what it assigns is carried round."""
        source = None if isinstance(statement, ast.While) else self.expression(statement.iter)
        start = dict(self.env)
        names = sorted(name for name in _assigned(statement) if name in start)
        unset = sorted(_read_of_earlier_rounds(statement) - set(start))
        carried = {name: self.make("carried", (start[name],), detail=statement) for name in names}
        carried |= {name: self.make("carried", (self.make("missing"),), detail=statement) for name in unset}
        self.env.update(carried)
        if isinstance(statement, ast.While):
            self.expression(statement.test)
        elif source is not None:
            self.assign(statement.target, self.make("element", (source,)))
        self.conditions.append(Condition(None, True, statement))
        self.block(statement.body)
        self.conditions.pop()
        for name, inside in carried.items():
            last = self.env.get(name, inside)
            if name not in start:
                self.make("loop", (*inside.args, last), detail=inside)
            elif last is inside:
                self.env[name] = start[name]
            else:
                self.env[name] = self.make("loop", (start[name], last), detail=inside)
        self.block(statement.orelse)

    def _with(
        self, statement: ast.With | ast.AsyncWith, items: list[ast.withitem], body: list[ast.stmt]
    ) -> bool:
        """A body that may be left early, where the context may swallow what it raises."""
        start = dict(self.env)
        for item in items:
            opened = self.expression(item.context_expr)
            if item.optional_vars is not None:
                self.assign(item.optional_vars, self.make("opaque", (opened,)))
        ended = self.block(body)
        if not ended and self.module.may_swallow(items, self.function):
            after = dict(self.env)
            self._merge(Condition(None, False, statement), after, {**after, **start})
        return ended

    def _try(self, statement: ast.Try | ast.TryStar) -> bool:
        start = dict(self.env)
        ended = self.block([*statement.body, *statement.orelse])
        after = dict(self.env)
        for handler in statement.handlers:
            condition = Condition(None, False, statement)
            self._replace(dict(start))
            self.conditions.append(condition)
            left = self.block(handler.body)
            self.conditions.pop()
            if not left and not ended:
                self._merge(condition, after, dict(self.env))
                after = dict(self.env)
            elif not left:
                after, ended = dict(self.env), False
        self._replace(after)
        return self.block(statement.finalbody) or ended


def _leaves(body: Sequence[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))


def _names(target: ast.expr) -> list[ast.Name]:
    """The names that `del a, (b, c)` forgets."""
    if isinstance(target, (ast.Tuple, ast.List)):
        return [name for each in target.elts for name in _names(each)]
    return [target] if isinstance(target, ast.Name) else []


def _asks_rank(test: ast.expr) -> bool:
    """Whether a condition may depend on a number of dimensions."""
    for each in ast.walk(test):
        match each:
            case ast.Attribute(attr="dim" | "ndim" | "ndimension"):
                return True
            case ast.Call(func=ast.Name(id="len"), args=[ast.Attribute(attr="shape") | ast.Call()]):
                return True
    return False


def _read_of_earlier_rounds(statement: ast.stmt) -> set[str]:
    """The names that a loop's body reads above the line that binds them, as under `if i > 0`."""
    bound: dict[str, tuple[int, int]] = {}
    reads: list[tuple[str, tuple[int, int]]] = []
    for each in own_nodes(statement):
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load):
            reads.append((each.id, (each.lineno, each.col_offset)))
        elif isinstance(each, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            end = (each.end_lineno or each.lineno, each.end_col_offset or 0)
            for target in each.targets if isinstance(each, ast.Assign) else [each.target]:
                for name in _names(target):
                    bound[name.id] = min(end, bound.get(name.id, end))
    return {name for name, at in reads if name in bound and at < bound[name]}


def _assigned(statement: ast.stmt) -> set[str]:
    """The names that a loop's body may change, in-place methods included."""
    found = set()
    for each in walk(statement):
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            found.add(each.id)
        elif isinstance(each, (ast.Attribute, ast.Subscript)):
            base = each.value
            if isinstance(base, ast.Attribute) and base.attr == "data":
                base = base.value
            inplace = isinstance(each, ast.Attribute) and each.attr.endswith("_")
            if isinstance(base, ast.Name) and (inplace or isinstance(each.ctx, ast.Store)):
                found.add(base.id)
    return found
