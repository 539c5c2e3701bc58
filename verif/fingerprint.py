"""What a unit's verification depends on, as a hash: definitions of its faces and all that they use, not whole files.

Comments, docstrings and line breaks leave the hash as it is, as does what only the mapper asks of a unit.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hw import UNITS

FACES = frozenset({"cycles", "golden", "rtl", "cases", "whole_space", "samples", "encode", "results", "decode", "proofs"})
"""Members of a unit that verification calls."""
PACKAGES = ("hw.rtl", "hw.units", "hw.gemm", "hw.number", "hw.bits")
"""Where arithmetic and RTL are defined. What units are made of otherwise (fields, errors, kinds of work) carries no arithmetic."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = tuple[str, str]
"""Module and name; every definition of the module where the name is `*`."""


@dataclass(frozen=True)
class Source:
    """A module: its lines, its top-level definitions by name and what its own names mean that come from elsewhere."""

    lines: tuple[str, ...]
    definitions: dict[str, ast.stmt]
    imported: dict[str, Definition]


@cache
def source(module: str) -> Source | None:
    """None for a module without a Python file."""
    path = _file(module)
    if path is None:
        return None
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    definitions: dict[str, ast.stmt] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                definitions[name] = node
            case ast.Assign(targets=targets):
                definitions |= {each.id: node for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                definitions[name] = node
    return Source(tuple(text.splitlines()), definitions, dict(_imports(tree)))


def _file(module: str) -> Path | None:
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded)
    import hw

    path = Path(hw.__path__[0]).parent / (module.replace(".", "/") + ".py")
    return path if path.is_file() else None


def _imports(tree: ast.AST) -> Iterator[tuple[str, Definition]]:
    """Names and what they stand for, of imports anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level and _counts(node.module):
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield alias.asname or alias.name, (below, "*") if _file(below) else (node.module, alias.name)


def _counts(module: str) -> bool:
    return module == "hw" or any(f"{module}.".startswith(f"{package}.") for package in PACKAGES)


def _members(node: ast.ClassDef) -> list[ast.stmt]:
    """Of a unit: fields, what checks them, and the methods that its faces reach through `self`, `cls` or their class."""
    methods = {each.name: each for each in node.body if isinstance(each, Function)}
    reached = [name for name, each in methods.items() if name in FACES or _checks(each)]
    for name in reached:
        used = {each.attr for each in ast.walk(methods[name]) if isinstance(each, ast.Attribute)}
        reached += sorted(used & methods.keys() - set(reached))
    return [each for each in node.body if not isinstance(each, ast.Expr) and (not isinstance(each, Function) or each.name in reached)]


def _checks(method: Function) -> bool:
    """Whether a method is one of Pydantic's validators."""
    return any("validator" in ast.unparse(each) for each in method.decorator_list)


def _text(found: Source, node: ast.stmt) -> str:
    """A definition without its docstrings, comments of whole lines and spaces."""
    lines: list[str] = list(found.lines)
    for each in ast.walk(node):
        if isinstance(each, ast.ClassDef | Function):
            for inner in each.body:
                if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant) and isinstance(inner.value.value, str):
                    lines[inner.lineno - 1 : inner.end_lineno] = [""] * ((inner.end_lineno or inner.lineno) - inner.lineno + 1)
    decorators = node.decorator_list if isinstance(node, ast.ClassDef | Function) else []
    first = min([node.lineno, *(each.lineno for each in decorators)])
    kept = (line for line in lines[first - 1 : node.end_lineno] if not line.lstrip().startswith("#"))
    return "".join("".join(kept).split())


@cache
def fingerprint(kind: str) -> str:
    """SHA-256 over all definitions that the checked faces of a unit kind are made of."""
    cls = UNITS[kind]
    texts: dict[str, str] = {}
    waiting: list[Definition] = [(cls.__module__, cls.__name__)]
    seen: set[Definition] = set()
    while waiting:
        module, name = waiting.pop()
        found = source(module)
        if (module, name) in seen or found is None:
            continue
        seen.add((module, name))
        if name == "*":
            waiting += [(module, each) for each in found.definitions]
            continue
        node = found.definitions.get(name)
        if node is None:
            waiting += [found.imported[name]] if name in found.imported else []
            continue
        unit = isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id == "Unit" for base in node.bases)
        parts = _members(node) if unit and isinstance(node, ast.ClassDef) else [node]
        for number, part in enumerate(parts):
            texts[f"{module}.{name}.{number}"] = _text(found, part)
        bases = node.bases if isinstance(node, ast.ClassDef) else []
        for each in (inner for part in (*parts, *bases) for inner in ast.walk(part)):
            if isinstance(each, ast.Name):
                waiting += [(module, each.id)] if each.id in found.definitions else []
                waiting += [found.imported[each.id]] if each.id in found.imported else []
    joined = "\n".join(f"{place} {text}" for place, text in sorted(texts.items()))
    return hashlib.sha256(joined.encode()).hexdigest()
