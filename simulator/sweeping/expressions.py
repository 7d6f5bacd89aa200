"""Conditions over columns, as `batch * context <= 4e6 and device != "a100-80gb"`: parsed, checked, never `eval`ed.

A condition is parsed by Python's own parser into a syntax tree, of which only names, numbers, texts, lists,
comparisons, `and`/`or`/`not`, `in`, arithmetic and a few functions are known here; everything else is refused by name.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Condition"]

_LONGEST = 2000

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "min": np.minimum,
    "max": np.maximum,
}


@dataclass(frozen=True)
class Condition:
    """A condition over named columns.

    Attributes:
        text: as written.
        names: the columns it reads.
    """

    text: str
    tree: ast.expr
    names: tuple[str, ...]

    @staticmethod
    def parse(text: str, known: Collection[str]) -> Condition:
        """Read a condition over the columns `known`.

        Raises:
            ValueError: not an expression, something that conditions may not hold, or a name that is no column.
        """
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise ValueError(f"where: a condition is a text of at most {_LONGEST} characters, not {text!r:.60}")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else error
            raise ValueError(f"where: {text!r} is not a condition ({reason}); write it like 'batch <= 64'") from None
        names: dict[str, None] = {}
        _check(tree, text, names)
        resolved = {name: _column(name, text, known) for name in names}
        return Condition(text, _renamed(tree, resolved), tuple(dict.fromkeys(resolved.values())))

    def holds(self, columns: Mapping[str, Any], rows: int) -> NDArray[np.bool_]:
        """Where the condition holds; a missing number makes every comparison false.

        Args:
            columns: arrays of `rows` values, or scalars.

        Raises:
            ValueError: numbers compared with texts.
        """
        with np.errstate(all="ignore"):
            try:
                value = _value(self.tree, columns)
                return np.broadcast_to(_truth(value), (rows,)).copy()
            except TypeError as error:
                raise ValueError(f"where: {self.text!r} mixes texts and numbers ({error})") from None


def _check(node: ast.AST, text: str, names: dict[str, None]) -> None:
    """Refuse every kind of node that is not known; collect the names."""
    dotted = _dotted(node)
    if dotted is not None:
        names[dotted] = None
        return
    children: list[ast.AST]
    if isinstance(node, ast.BoolOp):
        children = list(node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.UAdd):
        children = [node.operand]
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        children = [node.left, node.right]
    elif isinstance(node, ast.Compare):
        for op in node.ops:
            if type(op) not in _COMPARISONS and not isinstance(op, ast.In | ast.NotIn):
                raise ValueError(f"where: {text!r}: {type(op).__name__} is not a comparison that conditions know")
        children = [node.left, *node.comparators]
    elif isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            raise ValueError(f"where: {text!r} calls what is not one of: {', '.join(sorted(_FUNCTIONS))}")
        if len(node.args) != (2 if node.func.id in ("min", "max") else 1):
            raise ValueError(
                f"where: {text!r}: {node.func.id} takes {2 if node.func.id in ('min', 'max') else 1} values"
            )
        children = list(node.args)
    elif isinstance(node, ast.List | ast.Tuple):
        children = list(node.elts)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool | None):
        return
    else:
        raise ValueError(
            f"where: {text!r} holds a {type(node).__name__}; conditions know columns, numbers, texts, lists, "
            f"comparisons, and/or/not, arithmetic and {', '.join(sorted(_FUNCTIONS))}"
        )
    for child in children:
        _check(child, text, names)


def _dotted(node: ast.AST) -> str | None:
    """`memory.hbm.bandwidth` of a chain of attributes; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return None if inner is None else f"{inner}.{node.attr}"
    return None


def _column(name: str, text: str, known: Collection[str]) -> str:
    """The column a name stands for: itself, or the one that adds a unit to it."""
    if name in known:
        return name
    with_unit = [column for column in known if column.startswith(f"{name}_") and "." in name]
    if len(with_unit) == 1:
        return with_unit[0]
    near = difflib.get_close_matches(name, list(known), 3)
    hint = f"; did you mean {near[0]!r}?" if near else f"; columns: {', '.join(known)}"
    raise ValueError(f"where: {text!r}: there is no column {name!r}{hint}")


def _renamed(node: ast.expr, names: Mapping[str, str]) -> ast.expr:
    class Rename(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            dotted = _dotted(node)
            if dotted is not None and dotted in names:
                return ast.Name(names[dotted])
            if isinstance(node, ast.Call):
                return ast.Call(node.func, [self.visit(a) for a in node.args], [])  # type: ignore[misc]
            return self.generic_visit(node)

    renamed: Any = Rename().visit(node)
    assert isinstance(renamed, ast.expr)
    return renamed


def _truth(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype == object):
        raise TypeError("a text is neither true nor false")
    found = np.asarray(value)
    return found if found.dtype == np.bool_ else np.nan_to_num(found.astype(np.float64)) != 0


def _value(node: ast.expr, columns: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return (
                float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**62 else value
            )
        case ast.Name(id=name):
            return columns[name]
        case ast.BoolOp(op=op, values=values):
            parts = [_truth(_value(v, columns)) for v in values]
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return _fold(join, parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_truth(_value(operand, columns)))
        case ast.UnaryOp(op=op, operand=operand):
            inner = _number(_value(operand, columns))
            return inner if isinstance(op, ast.UAdd) else np.negative(inner)
        case ast.BinOp(op=op, left=left, right=right):
            return _arithmetic(type(op), _number(_value(left, columns)), _number(_value(right, columns)))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [left, *others]
            return _fold(np.logical_and, [_compare(o, a, b, columns) for o, a, b in zip(ops, values, values[1:])])
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*(_number(_value(a, columns)) for a in args))
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, columns) for item in items]
    raise AssertionError(ast.dump(node))  # _check let through what is not handled here


def _fold(join: Callable[[Any, Any], Any], parts: list[Any]) -> Any:
    found = parts[0]
    for part in parts[1:]:
        found = join(found, part)
    return found


def _number(value: Any) -> Any:
    if isinstance(value, str | list) or value is None or (isinstance(value, np.ndarray) and value.dtype == object):
        raise TypeError("arithmetic on a text")
    return value


def _arithmetic(kind: type[ast.operator], left: Any, right: Any) -> Any:
    """In float64 where 64-bit integers could wrap around: products of sizes, powers, quotients."""
    if kind in (ast.Add, ast.Sub):
        return _ARITHMETIC[kind](left, right)
    return _ARITHMETIC[kind](np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64))


def _compare(op: ast.cmpop, left: ast.expr, right: ast.expr, columns: Mapping[str, Any]) -> Any:
    a, b = _value(left, columns), _value(right, columns)
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(b, list):
            raise TypeError("'in' needs a list")
        found = _fold(np.logical_or, [np.asarray(a == item) for item in b] or [np.asarray(False)])
        return found if isinstance(op, ast.In) else np.logical_not(found)
    if _is_text(a) != _is_text(b) and a is not None and b is not None:
        raise TypeError(f"{_said(a)} and {_said(b)}")
    if a is None or b is None:
        other = b if a is None else a
        none = np.asarray(other == None) if _is_text(other) else np.isnan(np.asarray(other, dtype=np.float64))  # noqa: E711
        return none if isinstance(op, ast.Eq) else np.logical_not(none)
    return _COMPARISONS[type(op)](a, b)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype == object)


def _said(value: Any) -> str:
    return f"a text ({value!r})" if isinstance(value, str) else "a text" if _is_text(value) else "a number"
