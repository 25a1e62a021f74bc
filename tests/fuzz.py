"""Strategies of the property-based tests: texts that hurt, values of any kind, damaged files."""

from __future__ import annotations

import copy
import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["FUZZ", "any_json", "any_text", "damaged", "damaged_json", "words"]

# Where the environment says CI, hypothesis takes the same examples each time (its profile "ci").
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

NASTY = (
    "",
    " ",
    "\n",
    "\r\n",
    "\x00",
    "\x1b[2J",
    "\x85",
    "\u2028",
    "\u202e",
    "\ufeff",
    "\U0001f600",
    "e\u0301",
    "İ",
    "<unk>",
    "-->",
    ";;",
    "(a_1)",
    ")(",
    "'",
    '"',
    "'\"\\",
    "\\",
    "{",
    "}",
    "[",
    "../x",
    "/",
    "%s{0}",
    "@@",
    "</w>",
    "1e999",
    "nan",
    "-inf",
    "NaN",
    "9" * 5000,
    "__import__('os').abort()",
)
any_text = st.one_of(
    st.text(max_size=20), st.sampled_from(NASTY), st.lists(st.sampled_from(NASTY), max_size=4).map("".join)
)
"""Without half surrogates, which hypothesis leaves out, too."""
words = st.lists(any_text.map(lambda text: "".join(text.split())).filter(bool), max_size=8)
"""As str.split() gives them."""
numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.just(10**400),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, float("inf"), float("nan")]),
)
any_json = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, any_text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(any_text, inner, max_size=3)),
    max_leaves=6,
)

_TOKENS = (
    b"",
    b"\0",
    b"\n",
    b"\xff",
    b"\xc3",
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b'"',
    b"{",
    b"}",
    b"[" * 3000,
    b",",
    b"9" * 5000,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, tokens: tuple[bytes, ...] = ()) -> bytes:
    """:return: content with some changes: bytes turned, cut, doubled, moved, or something else put in"""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["flip", "cut", "insert", "replace", "double", "end"]))
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        end = min(len(content), start + draw(st.integers(1, 40)))
        token = draw(st.one_of(st.sampled_from(_TOKENS + tokens), st.binary(max_size=8)))
        if kind == "flip" and content:
            content[start] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del content[start:end]
        elif kind == "insert":
            content[start:start] = token
        elif kind == "replace":
            content[start:end] = token
        elif kind == "double":
            content[start:start] = content[start:end]
        else:
            del content[start:]
    return bytes(content)


def _places(value: object, path: tuple = ()) -> list[tuple]:
    """:return: paths to all values in a JSON value"""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in _places(inner, (*path, key)))]


@st.composite
def damaged_json(draw: st.DrawFn, value: object) -> object:
    """:return: a copy in which some values are others, of any kind, or missing, or with other names"""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_places(value)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(any_json)
            continue
        *keys, last = path
        place = value
        for key in keys:
            place = place[key]
        kind = draw(st.sampled_from(["other", "other", "number", "remove", "add"]))
        if kind == "other":
            place[last] = draw(any_json)
        elif kind == "number":
            place[last] = draw(numbers)
        elif kind == "remove":
            del place[last]
        elif isinstance(place, dict):
            place[draw(any_text)] = draw(any_json)
        else:
            place.insert(last, copy.deepcopy(place[last]))
    return value


def dump(value: object) -> bytes:
    """:return: JSON with all that Python's writer can do: NaN, ASCII with half surrogates"""
    return json.dumps(value).encode()
