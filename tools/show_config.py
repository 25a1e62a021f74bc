#!/usr/bin/env python3
"""
All options of a run, with the values that config file, recipe and command line give them. Needs no data, no checkpoint.

An asterisk marks a value that differs from the default of its class. Wrong options are reported as the run would. (The
options of the model of a recognition run are, in the end, those of its checkpoint.)

  python tools/show_config.py configs/ted2_train.config ++num_epochs 100
  python tools/show_config.py configs/demo_recog_labelsync.config ++beam_size 32 --json
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import MISSING, fields
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tools.cli import make_parser

__all__ = ["main", "read_options"]


class ShowConfigError(Exception):
    """The message is for the user."""


def read_options(config_file: str, command_line: list[str]) -> tuple[dict[type, Any], dict[str, Any]]:
    """
    :param config_file:
    :param command_line: ``++name value`` ..., as for rnn.py
    :return: option groups by class; keys of RETURNN that are given
    :raises ShowConfigError: the file is not one of ours
    :raises configs.base.options.OptionError: wrong options
    """
    from returnn.config import Config, global_config_ctx

    from configs.base.options import options_of

    try:
        with open(config_file, encoding="utf8") as file:
            code = compile(file.read(), config_file, "exec")
    except (SyntaxError, UnicodeDecodeError) as exc:
        raise ShowConfigError(f"{config_file}: not a config file in Python ({exc})") from None
    config = Config()
    config.parse_cmd_args(command_line)
    namespace = {"__file__": os.path.abspath(config_file), "__name__": "__returnn_config__", "config": {}}
    with global_config_ctx(config):
        found = options_of(lambda: exec(code, namespace))
    if found is None:
        raise ShowConfigError(f"{config_file} sets no options of this project")
    return found


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    parser = make_parser(__doc__)
    parser.add_argument("config", help="configs/*.config; then options of the run: ++name value")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    parser.add_argument("--changed", action="store_true", help="only what differs from the defaults of the classes")
    words = sys.argv[1:] if argv is None else argv
    own, run = _split(words)
    args = parser.parse_args(own)
    try:
        groups, returnn_values = read_options(args.config, run)
    except OSError as exc:
        print(f"error: {exc.filename}: {exc.strerror}", file=sys.stderr)
        return 1
    except (ShowConfigError, SystemExit) as exc:  # OptionError is a SystemExit
        print(str(exc) if str(exc).startswith("error: ") else f"error: {exc}", file=sys.stderr)
        return 1
    if args.json:
        flat = {
            option.name: getattr(group, option.name)
            for group in groups.values()
            for option in fields(group)
            if not args.changed or _differs(group, option)
        }
        print(json.dumps({**flat, **returnn_values}, indent=2, sort_keys=True))
        return 0
    for cls, group in groups.items():
        options = [option for option in fields(cls) if not args.changed or _differs(group, option)]
        if options:
            print(f"{cls.__name__} ({cls.__module__})")
        for option in options:
            mark = "*" if _differs(group, option) else " "
            print(f" {mark} {option.name} = {getattr(group, option.name)!r}")
    if returnn_values:
        print("RETURNN")
    for name, value in returnn_values.items():
        print(f" * {name} = {value!r}")
    return 0


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """:return: words of this program; words of the run (``++name value``)"""
    own, run = [], []
    rest = iter(words)
    for word in rest:
        if word.startswith("++"):
            run += [word, *([value] if (value := next(rest, None)) is not None else [])]
        else:
            own.append(word)
    return own, run


def _differs(group: Any, option: Any) -> bool:
    """:return: whether the value is not the default of the class"""
    return option.default is MISSING or getattr(group, option.name) != option.default


if __name__ == "__main__":
    sys.exit(main())
