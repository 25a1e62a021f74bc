"""Small text files that may come from somebody else."""

from __future__ import annotations

import os

__all__ = ["read_text"]


def read_text(filename: str, *, max_bytes: int, what: str) -> str:
    """
    :param filename:
    :param max_bytes: more is refused unread
    :param what: it is to be, for the message
    :return: its content
    :raises ValueError: too large, or not UTF-8
    :raises OSError: cannot be read
    """
    if (size := os.path.getsize(filename)) > max_bytes:
        raise ValueError(f"{filename} has {size} bytes: too large for a {what}")
    try:
        with open(filename, encoding="utf8") as file:
            return file.read()
    except UnicodeDecodeError as exc:
        raise ValueError(f"{filename}: not UTF-8 ({exc})") from None
