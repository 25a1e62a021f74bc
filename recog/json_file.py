"""JSON files of other runs and tools: an object, or an error that names the file."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["JsonError", "read_json_object"]


class JsonError(ValueError):
    """Not a JSON object. The message names the file."""


def read_json_object(filename: str) -> dict[str, Any]:
    """
    :param filename: UTF-8
    :return: its content
    :raises JsonError: something else (also what is nested so deeply that Python gives up)
    :raises OSError: cannot be read
    """
    try:
        with open(filename, encoding="utf8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as exc:
        raise JsonError(f"{filename}: not JSON ({exc})") from None
    if not isinstance(content, dict):
        raise JsonError(f"{filename}: expected a JSON object")
    return content
