"""Whether the callers in the same file ever let a guard hold."""

import ast

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.source.attributes import Attribute, kind_of
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Condition
from flashmore.upgrade.source.scopes import bound_arguments


def check_default_use(rewriting: Rewriting) -> None:
    """Whether some call of the function may let its guard hold.

    Raises:
        Refuse: every call in its file passes what the guard excludes.
    """
    flow, guards = rewriting.found.flow, rewriting.guards
    nodes = ast.walk(flow.module.tree) if guards else ()
    calls = [each for each in nodes if isinstance(each, ast.Call) and _calls(each, flow)]
    if calls and all(any(_holds(guard, each, flow) is False for guard in guards) for each in calls):
        lines = f"line{'s' * (len(calls) > 1)} {', '.join(str(each.lineno) for each in calls)}"
        guard = " and ".join(map(rewriting.words.condition, guards))
        raise Refuse(f"the fused lines need `{guard}`, which no call in this file gives ({lines})")


def _calls(call: ast.Call, flow: Flow) -> bool:
    """Whether a call may be one of the function, as far as names tell."""
    match call.func:
        case ast.Name(id=name):
            return flow.owner is None and name == flow.function.name
        case ast.Attribute(attr=name) if flow.owner is not None:
            return name == flow.function.name or (flow.function.name == "forward" and _is_layer(name, flow))
    return False


def _is_layer(name: str, flow: Flow) -> bool:
    """Whether every class of the file with an attribute of this name makes it from the function's class."""
    module, owner = flow.module, flow.owner
    holders = [each for each in module.classes.values() if each.own_assignments.get(name)]
    made = {kind_of(Attribute("", each, name), module).detail for each in holders}
    return owner is not None and bool(made) and made <= {owner.node.name}


def _holds(guard: Condition, call: ast.Call, flow: Flow) -> bool | None:
    """Whether a condition on one argument holds for a call; None where that cannot be said."""
    match guard.node:
        case ast.Name(id=name):
            how = None
        case ast.Compare(ast.Name(id=name), [ast.Is() | ast.IsNot() as how], [ast.Constant(None)]):
            pass
        case _:
            return None
    given = bound_arguments(flow.function, call, method=flow.owner is not None).get(name)
    if not isinstance(given, ast.Constant):
        return None
    answer = bool(given.value) if how is None else (given.value is None) == isinstance(how, ast.Is)
    return answer == guard.holds
