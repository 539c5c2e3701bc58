"""Small expressions in study files: conditions, settings and objectives computed from parameters.

Arithmetic, comparisons, `and`/`or`/`not`, `a if c else b`, and a handful of functions over named values. Nothing else is
evaluated: no attributes, no calls of anything else, so a study file cannot run code.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from dovetail.explore.errors import ExploreError
from hw.errors import nearest

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs, "round": round, "log2": math.log2, "ceil": math.ceil}
_LARGEST_POWER = 64
_DIGITS = 12
"""Significant digits of a computed decimal: 24 * 1228.8 is 29491.2, not 29491.199999999997."""


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ExploreError(f"{text!r}: not an expression ({getattr(error, 'msg', None) or error})") from None


def names(text: str) -> frozenset[str]:
    """The values that an expression refers to.

    >>> sorted(names("rows * max(columns, 4)"))
    ['columns', 'rows']
    """
    nodes = list(ast.walk(_parsed(text)))
    inner = {id(n.func) for n in nodes if isinstance(n, ast.Call)} | {id(n.value) for n in nodes if isinstance(n, ast.Attribute)}
    return frozenset(_dotted(n) for n in nodes if isinstance(n, (ast.Name, ast.Attribute)) and id(n) not in inner)


def _dotted(node: ast.expr) -> str:
    """`prefill.latency` as one name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def evaluate(text: str, values: Mapping[str, Any]) -> Any:
    """The value of an expression. Raises `ExploreError` that quotes it and names what is wrong.

    >>> evaluate("rows * columns // 2", {"rows": 4, "columns": 3})
    6
    """
    try:
        return _value(_parsed(text), values)
    except ExploreError as error:
        raise ExploreError(f"{text!r}: {error}") from None
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ExploreError(f"{text!r}: {error}") from None


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as constant):
            return constant
        case ast.Name() | ast.Attribute():
            name = _dotted(node)
            if name not in values:
                raise ExploreError(f"unknown name {name!r}, expected one of {', '.join(values) or 'none'}{nearest(name, values)}")
            return values[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, values) for item in items]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left, values), _value(right, values)
            if isinstance(op, ast.Pow) and abs(b) > _LARGEST_POWER:
                raise ExploreError(f"exponent {b}: expected at most {_LARGEST_POWER}")
            if isinstance(a, str) or isinstance(b, str):
                raise ExploreError(f"{a!r} and {b!r}: arithmetic needs numbers")
            return _BINARY[type(op)](a, b)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, values)
        case ast.BoolOp(op=op, values=parts):
            results = (_value(part, values) for part in parts)
            return all(results) if isinstance(op, ast.And) else any(results)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            current = _value(left, values)
            for comparison, right in zip(ops, rights, strict=True):
                other = _value(right, values)
                if type(comparison) not in _COMPARE or not _COMPARE[type(comparison)](current, other):
                    return False
                current = other
            return True
        case ast.IfExp(test=test, body=body, orelse=other):
            return _value(body, values) if _value(test, values) else _value(other, values)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            if name not in FUNCTIONS:
                raise ExploreError(f"unknown function {name!r}, expected one of {', '.join(FUNCTIONS)}{nearest(name, FUNCTIONS)}")
            return FUNCTIONS[name](*(_value(argument, values) for argument in arguments))
        case _:
            raise ExploreError(f"{ast.unparse(node)}: only arithmetic, comparisons and {', '.join(FUNCTIONS)} are evaluated")


_TEMPLATE = re.compile(r"\{([^{}]*)\}")


def template_names(text: object) -> frozenset[str]:
    """The values that the `{...}` parts of a text refer to; none for anything but text."""
    if not isinstance(text, str):
        return frozenset()
    return frozenset(name for part in _TEMPLATE.findall(text) for name in names(part))


def fill(text: object, values: Mapping[str, Any]) -> Any:
    """`text` with each `{expression}` replaced by its value; a text that is one expression becomes the value itself.

    >>> fill("{rows * 4} KiB", {"rows": 32}), fill("{rows}", {"rows": 32}), fill(7, {})
    ('128 KiB', 32, 7)
    """
    if not isinstance(text, str):
        return text
    if match := _TEMPLATE.fullmatch(text.strip()):
        value = evaluate(match[1], values)
        return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
    return _TEMPLATE.sub(lambda m: _spelled(evaluate(m[1], values)), text)


def _spelled(value: Any) -> str:
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)
