"""recog/README.md has a line for every option of the searches."""

import os
from dataclasses import fields

import pytest

from recog import options

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CLASSES = [getattr(options, name) for name in options.__all__ if name.endswith("Options")]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_option_is_described(cls):
    with open(os.path.join(ROOT, "recog", "README.md"), encoding="utf8") as file:
        text = file.read()
    missing = [field.name for field in fields(cls) if f"{field.name}" not in text]
    assert not missing, f"recog/README.md says nothing of {', '.join(missing)}"
