"""
RETURNN's file ``learning_rates`` of a training: what was measured in each sub-epoch.

It is a Python expression: a dict with the calls ``EpochData(learningRate=..., error={...})``. RETURNN evaluates it when
a training continues, and so would run whatever somebody wrote into it. Here it is parsed, and a training run checks it
before RETURNN sees it.
"""

from __future__ import annotations

import ast
import os
from typing import Any

__all__ = ["LearningRatesError", "read_learning_rates"]

_MAX_BYTES = 16 * 2**20  # a sub-epoch has about 1 kB


class LearningRatesError(ValueError):
    """Not a file of learning rates as RETURNN writes it. The message names the file."""


def read_learning_rates(filename: str) -> dict[int, dict[str, Any]]:
    """
    :param filename:
    :return: number of the sub-epoch -> its "error" dict (e.g. "dev_loss_ce", ":meta:time"), and "learning_rate"
    :raises LearningRatesError: not such a file
    :raises OSError: cannot be read
    """
    try:
        if os.path.getsize(filename) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        with open(filename, encoding="utf8") as file:
            tree = ast.parse(file.read(), mode="eval").body
        if not isinstance(tree, ast.Dict):
            raise ValueError("expected a dict")
        epochs = {}
        for key, call in zip(tree.keys, tree.values, strict=True):
            number = _literal(key)
            if type(number) is not int:
                raise ValueError(f"{number!r} is no number of a sub-epoch")
            epochs[number] = _epoch(call)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as exc:
        raise LearningRatesError(
            f"{filename}: not a file of learning rates as RETURNN writes it ({exc}). It is not used: RETURNN would"
            " execute what is in it"
        ) from None
    return dict(sorted(epochs.items()))


def _epoch(call: ast.AST) -> dict[str, Any]:
    """:return: values of an EpochData"""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "EpochData":
        raise ValueError("expected EpochData(...)")
    if call.args:
        raise ValueError("expected EpochData(learningRate=..., error=...)")
    values = {word.arg: _literal(word.value) for word in call.keywords}
    error = values.get("error")
    if not isinstance(error, (dict, type(None))):
        error = {"old_format_score": error}  # by old versions of RETURNN
    return {**(error or {}), "learning_rate": values.get("learningRate")}


def _literal(node: ast.AST | None) -> Any:
    """:return: value of a Python literal, with the spellings of RETURNN and numpy for numbers"""
    if isinstance(node, ast.Dict):
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.Name) and node.id in ("nan", "inf"):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if isinstance(value, (int, float)):
            return -value
        raise ValueError("expected a literal")
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("float", "np.float64", "np.float32"):
        (argument,) = node.args  # float('nan'), np.float64(1.5)
        value = argument.value if isinstance(argument, ast.Constant) else _literal(argument)
        if not node.keywords and (isinstance(value, float) or value in ("nan", "inf", "-inf")):
            return float(value)
        raise ValueError("expected a literal")
    if node is None:
        raise ValueError("expected a literal")
    return ast.literal_eval(node)
