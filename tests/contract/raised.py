"""Which statuses a handler can answer with, read from its source and from all that it calls.

Names are followed as far as they can be without running anything: functions of a module, methods of the
handler's own class, and methods of other classes whose name is the router's only one.
"""

import ast
import asyncio
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from starlette.requests import Request

import seer_sgl.router
from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.http.bodies import json_response
from seer_sgl.router.http.errors import error_response

_COMMON = {name for kind in (dict, list, set, str, bytes, Request, asyncio.Task) for name in dir(kind)}
"""Names of methods that say nothing of whose they are."""

_CANNOT = {"own_url"}
"""Functions that call what raises with what cannot be wrong, as the router's own address."""

Place = tuple[Any, type | None]
"""A function, and the class that it is a method of."""


def statuses(handler: Callable[..., Any]) -> set[int]:
    """Every status that is raised or answered with as an error below a handler."""
    seen: set[Any] = set()
    owner = type(handler.__self__) if inspect.ismethod(handler) else None
    waiting: list[Place] = [(inspect.unwrap(handler), owner)]
    found: set[int] = set()
    while waiting:
        function, owner = waiting.pop()
        function = getattr(function, "__func__", function)
        if function in seen:
            continue
        seen.add(function)
        for call in _calls(function):
            target = _target(call.func, function, owner)
            if target and getattr(target[0], "__name__", "") in _CANNOT:
                continue
            found |= _status_of(call, target[0]) if target else set()
            if target and inspect.isroutine(target[0]) and (target[1] or _ours(target[0])):
                waiting.append(target)
    return found


def _ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("seer_sgl.router")


def _calls(function: Any) -> list[ast.Call]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        return []
    return list(_uncaught(tree))


def _uncaught(node: ast.AST) -> Iterator[ast.Call]:
    """Calls whose errors leave the function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield child
        if isinstance(child, ast.Try) and any(map(_catches, child.handlers)):
            for part in (child.handlers, child.orelse, child.finalbody):
                for each in part:
                    yield from _uncaught(each)
        else:
            yield from _uncaught(child)


def _catches(handler: ast.ExceptHandler) -> bool:
    caught = ast.unparse(handler.type) if handler.type else "Exception"
    return any(name in caught for name in ("RequestError", "SeerError", "Exception"))


def _target(called: ast.expr, function: Any, owner: type | None) -> Place | None:
    if isinstance(called, ast.Name):
        found = getattr(function, "__globals__", {}).get(called.id)
        return (found, None) if found is not None else None
    if not isinstance(called, ast.Attribute):
        return None
    if isinstance(called.value, ast.Name) and called.value.id == "self" and owner:
        method = getattr(owner, called.attr, None)
        return (method, owner) if method is not None else None
    named = [] if called.attr in _COMMON else _methods().get(called.attr, [])
    return named[0] if len(named) == 1 else None


@cache
def _methods() -> dict[str, list[Place]]:
    """Every method of the router's classes by its name."""
    found: dict[str, list[Place]] = {}
    for kind in set(_classes()):
        for name, member in vars(kind).items():
            if inspect.isfunction(member) and not name.startswith("__"):
                found.setdefault(name, []).append((member, kind))
    return found


def _classes() -> Iterator[type]:
    for info in pkgutil.walk_packages(seer_sgl.router.__path__, "seer_sgl.router."):
        for member in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(member) and _ours(member):
                yield member


def _status_of(call: ast.Call, target: Any) -> set[int]:
    """The status that a call makes, where it makes one."""
    if inspect.isclass(target) and issubclass(target, RequestError):
        return _literal(call, "status", 2, default=400)
    if inspect.isclass(target) and issubclass(target, SeerError):
        return {503}
    if target is error_response:
        return _literal(call, "status", 0)
    if target is json_response:
        return {status for status in _literal(call, "status", 1) if status >= 400}
    return set()


def _literal(call: ast.Call, name: str, position: int, default: int | None = None) -> set[int]:
    """An argument's values, as far as they stand in the source; names are looked up nowhere."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == name]
    given += call.args[position : position + 1]
    if not given:
        return set() if default is None else {default}
    values = [node.value for node in ast.walk(given[0]) if isinstance(node, ast.Constant)]
    return {value for value in values if type(value) is int and 400 <= value < 600}
