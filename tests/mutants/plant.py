# SPDX-License-Identifier: Apache-2.0
"""The small faults that can be planted in a Python source, one at a time."""

import ast
import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_PAIRS = (("min", "max"), ("amin", "amax"), ("minimum", "maximum"), ("argmin", "argmax"),
          ("any", "all"), ("floor", "ceil"))  # fmt: skip
NAMES = {**dict(_PAIRS), **{b: a for a, b in _PAIRS}}

# zip(…, strict=True) says what is never otherwise, as an assert does; a device is another one where
# there is a GPU only; the rest is how a picture or a table looks.
_UNSEEN = ("strict", "device", "color", "fontsize", "justify", "style", "title_style")


class Mutant(NamedTuple):
    """One fault: bytes first … last of a source become `text`."""

    line: int  # on which the fault begins
    span: tuple[int, int]
    kind: str
    what: str  # "old → new", for people
    text: str

    def planted(self, source: str) -> str:
        """Returns the source with the fault in it.

        >>> first = next(mutants("a = b < 1"))
        >>> first.what, first.planted("a = b < 1")
        ('b < 1 → b <= 1', 'a = (b <= 1)')
        """
        raw = source.encode()
        return (raw[: self.span[0]] + self.text.encode() + raw[self.span[1] :]).decode()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "…"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    )


def _with(node: ast.AST, change: Callable[..., None]) -> ast.AST:
    changed = copy.deepcopy(node)
    change(changed)
    return changed


def _comparison(node: ast.Compare) -> Iterator[tuple[str, ast.AST]]:
    for i, op in enumerate(node.ops):
        other = COMPARISONS[type(op)]
        yield "comparison", _with(node, lambda x, i=i, o=other: x.ops.__setitem__(i, o()))


def _binary(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    if type(node.op) in ARITHMETIC and not (_is_text(node.left) or _is_text(node.right)):
        yield "arithmetic", _with(node, lambda x: setattr(x, "op", ARITHMETIC[type(x.op)]()))


def _augmented(node: ast.AugAssign) -> Iterator[tuple[str, ast.AST]]:
    if type(node.op) in ARITHMETIC and not _is_text(node.value):
        yield "arithmetic", _with(node, lambda x: setattr(x, "op", ARITHMETIC[type(x.op)]()))


def _connective(node: ast.BoolOp) -> Iterator[tuple[str, ast.AST]]:
    other = ast.Or if isinstance(node.op, ast.And) else ast.And
    yield "connective", _with(node, lambda x: setattr(x, "op", other()))


def _unary(node: ast.UnaryOp) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield "sign", copy.deepcopy(node.operand)


def _constant(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield "constant", ast.Constant(value + 1 if value in (0, 1) else 2 * value)


def _condition(node: ast.If | ast.While | ast.IfExp) -> Iterator[tuple[str, ast.AST]]:
    yield "condition", ast.UnaryOp(ast.Not(), copy.deepcopy(node.test))


def _name(node: ast.Name | ast.Attribute) -> Iterator[tuple[str, ast.AST]]:
    field = "id" if isinstance(node, ast.Name) else "attr"
    if getattr(node, field) in NAMES:
        yield "min/max", _with(node, lambda x: setattr(x, field, NAMES[getattr(x, field)]))


def _call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    for i, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, *_UNSEEN):
            yield f"dropped {keyword.arg}=", _with(node, lambda x, i=i: x.keywords.pop(i))


EXPRESSIONS: dict[type, Callable[..., Iterator[tuple[str, ast.AST]]]] = {
    ast.Compare: _comparison, ast.BinOp: _binary, ast.BoolOp: _connective, ast.UnaryOp: _unary,
    ast.Constant: _constant, ast.IfExp: _condition, ast.If: _condition, ast.While: _condition,
    ast.Name: _name, ast.Attribute: _name, ast.Call: _call, ast.AugAssign: _augmented,
}  # fmt: skip


def _removable(node: ast.stmt) -> bool:
    """Returns whether the rest still has all its names without this statement."""
    if isinstance(node, ast.Assign):
        return all(isinstance(x, (ast.Attribute, ast.Subscript)) for x in node.targets)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, (ast.Call, ast.Await))
    return isinstance(node, (ast.Raise, ast.AugAssign, ast.Delete, ast.Continue, ast.Break))


# What no run reads, or only people do.
_SKIPPED = ("annotation", "returns", "decorator_list", "exc", "cause", "type_params")


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the children of a node in which a fault would be one of behaviour."""
    for name, value in ast.iter_fields(node):
        if name not in _SKIPPED:
            yield from (
                x for x in (value if isinstance(value, list) else [value]) if isinstance(x, ast.AST)
            )


def _visit(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, (ast.Assert, ast.JoinedStr)):
        return
    if isinstance(node, ast.keyword) and node.arg in _UNSEEN:
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in _parts(node):
        yield from _visit(child)


def mutants(source: str) -> Iterator[Mutant]:
    """Yields every fault that can be planted in a source, in the order of its lines.

    >>> [m.what for m in mutants("def f(x, n=3):\\n    '''Words.'''\\n    return max(x, -n)")]
    ['3 → 6', 'max → min', '-n → n']
    """
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node) -> tuple[int, int]:
        first = starts[node.lineno - 1] + node.col_offset
        return first, starts[node.end_lineno - 1] + node.end_col_offset

    found = []
    for node in _visit(ast.parse(source)):
        for kind, changed in EXPRESSIONS.get(type(node), lambda _: ())(node):
            at = node.test if isinstance(node, (ast.If, ast.While, ast.IfExp)) else node
            old, new = ast.unparse(at), ast.unparse(changed)
            # In brackets: what stands around it may bind more tightly.
            bare = isinstance(node, (ast.AugAssign, ast.Name, ast.Attribute, ast.Call))
            what = f"{_short(old)} → {_short(new)}"
            found.append(Mutant(at.lineno, span(at), kind, what, new if bare else f"({new})"))
        if isinstance(node, ast.stmt) and _removable(node):
            what = f"{_short(ast.unparse(node))} → (removed)"
            found.append(Mutant(node.lineno, span(node), "removed", what, "pass"))
    yield from sorted(found, key=lambda m: (m.line, m.span, m.kind))
