"""
From the plain variables of a config and the command line to typed options.

A run has some option groups (frozen dataclasses with different field names). The value of an option is, the last wins:
default of the dataclass, what the corpus sets (``configs/base/<corpus>.py``), the variable in the config file,
``++name value`` on the command line. An unknown name stops the run and names the nearest right one.
"""

from __future__ import annotations

import ast
import difflib
import math
import types
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import fields, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["OptionError", "check_positive", "options_of", "parse_value", "resolve_options"]

# Keys of RETURNN itself that may be given on the command line or set in a config. All others must be options of ours:
# RETURNN ignores a key that nobody reads, so a typo would go unnoticed.
RETURNN_KEYS = frozenset(
    """
    backend behavior_version device load load_epoch log log_verbosity log_format log_batch_size log_grad_norm
    torch_amp torch_distributed torch_dataloader_opts torch_log_memory_usage torch_batching grad_scaler
    start_epoch save_interval stop_on_nonfinite_train_score random_seed debug_print_layer_output_template
    use_train_proc_manager watch_memory max_seqs max_seq_length min_seq_length
    """.split()
)


class OptionError(SystemExit):
    """A wrong option: RETURNN ends with the message and exit code 1, without a stack trace."""

    def __init__(self, message: str):
        super().__init__(f"error: {message}")


def parse_value(text: str, annotation: Any, *, name: str) -> Any:
    """
    :param text: from the command line
    :param annotation: type of the option: bool, int, float, str, Literal, X | None, tuple[X, ...]
    :param name: for messages
    :return: value of that type
    :raises ValueError: if the text does not fit
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if type(None) in args and text.lower() in ("none", ""):
            return None
        for arg in args:
            if arg is not type(None):
                try:
                    return parse_value(text, arg, name=name)
                except ValueError:
                    pass
        raise ValueError(f"{name} = {text!r}: expected {_describe(annotation)}")
    if origin is Literal:
        for arg in args:
            if text == str(arg):
                return arg
    elif origin is tuple:
        items = [item.strip() for item in text.strip("()[] ").split(",") if item.strip()]
        types_ = [args[0]] * len(items) if args[-1] is Ellipsis else args
        if len(types_) == len(items):
            return tuple(parse_value(i, t, name=name) for i, t in zip(items, types_, strict=True))
    elif annotation is bool:
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
    elif annotation is str:
        return text
    elif annotation in (int, float):
        try:
            return annotation(text)
        except ValueError:
            pass
    else:
        raise TypeError(f"option {name} has a type that cannot be given on the command line: {annotation}")
    raise ValueError(f"{name} = {text!r}: expected {_describe(annotation)}")


def _finite(value: Any, *, name: str) -> Any:
    """
    :return: value
    :raises ValueError: it is, or holds, NaN or infinity: no option has a meaning for that
    """
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{name} = {value}: expected a finite number")
    return value


def check_positive(group: Any, *names: str) -> None:
    """
    :param group: of options
    :param names: of whole numbers in it
    :raises ValueError: one is not at least 1
    """
    for name in names:
        if getattr(group, name) < 1:
            raise ValueError(f"{name} = {getattr(group, name)}: expected at least 1")


def _describe(annotation: Any) -> str:
    """:return: a type as a user reads it"""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is tuple:
        return "values separated by commas, each " + _describe(args[0])
    return {type(None): "None", int: "a whole number", float: "a number", bool: "True or False", str: "a text"}.get(
        annotation, str(annotation)
    )


def _check_type(value: Any, annotation: Any, *, name: str) -> Any:
    """:return: value of a config variable, lists as tuples and ints as floats where the option is of such a type"""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for arg in args:
            try:
                return _check_type(value, arg, name=name)
            except ValueError:
                pass
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, (tuple, list)):
            types_ = [args[0]] * len(value) if args[-1] is Ellipsis else args
            if len(types_) == len(value):
                return tuple(_check_type(v, t, name=name) for v, t in zip(value, types_, strict=True))
    elif annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, annotation):
        return value
    raise ValueError(f"{name} = {value!r}: expected {_describe(annotation)}")


def resolve_options(
    namespace: dict[str, Any],
    command_line: Mapping[str, str],
    groups: Iterable[Any],
    *,
    presets: Mapping[str, Any] | None = None,
) -> tuple[dict[type, Any], dict[str, Any]]:
    """
    :param namespace: globals of the config file. The variables that are options are removed from it: RETURNN would
        evaluate their command line value a second time.
    :param command_line: ``++`` options as texts
    :param groups: instances of frozen dataclasses with the defaults of this run
    :param presets: values that replace defaults of the groups, but not what config file and command line say
    :return: the same groups with the values of config and command line, by class; RETURNN's own keys that were set
    :raises OptionError: unknown name, wrong type or value
    """
    groups = list(groups)
    owner: dict[str, Any] = {}
    for group in groups:
        hints = get_type_hints(type(group))
        for field in fields(group):
            assert field.name not in owner, f"option {field.name} exists twice"
            owner[field.name] = (group, hints[field.name])

    values: dict[Any, dict[str, Any]] = {id(group): {} for group in groups}
    returnn_values: dict[str, Any] = {}

    def _set(name: str, value: Any, convert: Callable[..., Any], where: str) -> None:
        if name in owner:
            group, annotation = owner[name]
            try:
                values[id(group)][name] = _finite(convert(value, annotation, name=name), name=name)
            except ValueError as exc:
                raise OptionError(f"{where}: {exc}") from None
        elif name in RETURNN_KEYS:
            returnn_values[name] = value
        else:
            close = difflib.get_close_matches(name, [*owner, *RETURNN_KEYS], n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"options of this run: {', '.join(sorted(owner))}"
            )
            raise OptionError(f"{where}: unknown option {name!r}; {hint}")

    for name, value in (presets or {}).items():
        _set(name, value, _check_type, "preset")
    for name in [n for n in namespace if not n.startswith("_") and n != "config"]:
        value = namespace[name]
        if isinstance(value, types.ModuleType) or callable(value):
            continue
        _set(name, value, _check_type, "config file")
        if name in owner:
            del namespace[name]
    for name, text in command_line.items():
        _set(name, text, parse_value, "command line")

    resolved: dict[type, Any] = {}
    for group in groups:
        try:
            resolved[type(group)] = replace(group, **values[id(group)])
        except ValueError as exc:
            raise OptionError(str(exc)) from None
    if _options_only.get():
        raise _Resolved(resolved, returnn_values)
    return resolved, returnn_values


class _Resolved(Exception):
    """Ends a config file when its options are known: what follows needs data and checkpoints."""

    def __init__(self, groups: dict[type, Any], returnn_values: dict[str, Any]):
        super().__init__()
        self.groups, self.returnn_values = groups, returnn_values


_options_only: ContextVar[bool] = ContextVar("options_only", default=False)


def options_of(run_config: Callable[[], Any]) -> tuple[dict[type, Any], dict[str, Any]] | None:
    """
    :param run_config: executes a config file
    :return: what its call of :func:`resolve_options` gives, without what comes after it; None: it makes no such call
    :raises OptionError: see there
    """
    token = _options_only.set(True)
    try:
        run_config()
    except _Resolved as result:
        return result.groups, result.returnn_values
    finally:
        _options_only.reset(token)
    return None


def returnn_literal(value: Any, *, name: str) -> Any:
    """
    :param value: of a RETURNN key, as text if from the command line
    :return: as Python value (literals only, nothing is executed)
    :raises OptionError: if it is not a Python literal
    """
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise OptionError(f"command line: {name} = {value!r}: expected a Python literal such as {{'key': 1}}") from None
