"""Variables of a TensorFlow checkpoint under uniform names, and the account of which are used for what."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .bundle import BundleReader

__all__ = ["COPY", "Assignment", "ConversionError", "Transform", "Variables", "canonical_name"]


class ConversionError(ValueError):
    """A checkpoint is not of the expected kind of model, or does not fit its options. The message is one sentence."""


@dataclass(frozen=True)
class Transform:
    """How the value of a parameter follows from the value of a variable."""

    description: str
    function: Callable[[np.ndarray], np.ndarray]


COPY = Transform("copy", lambda value: value)


@dataclass(frozen=True)
class Assignment:
    """One parameter of the new model."""

    target: str
    """name of the parameter"""
    source: str
    """canonical name of the variable"""
    transform: Transform = COPY
    from_asr: bool = False
    """whether the variable is one of the ASR checkpoint (of the internal LM)"""


_SLOT_NAME = re.compile(
    r"(^|/)(beta[12]_power(_\d+)?"
    r"|(Adam\w*|Nadam|NadamW?|Momentum|RMSProp|Adagrad|AdagradDA|Adadelta|Ftrl|SGD|ExponentialMovingAverage)(_\d+)?)$"
    r"|^(optimi[sz]e|optimi[sz]er|gradients|accum_grad\w*)/"
)
_NO_PARAMETERS = {
    "global_step": "number of updates, stored as 'step'",
    "epoch_step": "training progress",
    "learning_rate": "training progress",
    "save_counter": "training progress",
    "_CHECKPOINTABLE_OBJECT_GRAPH": "TensorFlow's own description",
}
# The layer may be inside or outside of the recurrent layer "output", depending on RETURNN's optimisation of the loop.
_LOOP_SCOPE = "output/rec/"
# Parameters of RETURNN's BatchNormLayer with param_version 0 (the layer name again), 1 and 2.
_BATCH_NORM = re.compile(r"^(?P<layer>.+/batch_norm/)(?:.*_)?(?P<param>mean|variance|gamma|beta)$")
# Cells of tf.nn.rnn_cell and RETURNN's own, with and without an inner scope.
_LSTM_CELL = re.compile(r"^(?P<layer>.+/rec/)(?:rnn/)?\w*lstm_cell/(?P<param>kernel|bias)$")


def canonical_name(name: str) -> str:
    """
    :param name: in the checkpoint
    :return: the same for all ways in which RETURNN has named this parameter
    """
    name = name.removeprefix(_LOOP_SCOPE)
    match = _BATCH_NORM.match(name)
    if match:
        return match["layer"] + match["param"]
    match = _LSTM_CELL.match(name)
    if match:
        return f"{match['layer']}lstm_cell/{match['param']}"
    return name


@dataclass
class Variables:
    """All variables of one checkpoint, by canonical name."""

    reader: BundleReader
    names: dict[str, str] = field(default_factory=dict)
    """canonical name -> name in the file; without optimizer slots and the like"""
    ignored: dict[str, str] = field(default_factory=dict)
    """name in the file -> reason why it is not needed"""

    def __post_init__(self):
        for name, entry in self.reader.entries.items():
            if name in _NO_PARAMETERS:
                self.ignored[name] = _NO_PARAMETERS[name]
            elif _SLOT_NAME.search(name) or self._below_other_variable(name):
                self.ignored[name] = "state of the optimizer"
            elif not entry.readable and entry.dtype == "string":
                self.ignored[name] = "text, no numbers"
            else:
                other = self.names.setdefault(canonical_name(name), name)
                if other != name:
                    raise ConversionError(
                        f"{self.reader.prefix} has both {other} and {name}, and it is not clear which one is meant"
                    )

    def _below_other_variable(self, name: str) -> bool:
        """:return: whether it is W/something where W is a variable: how TensorFlow names slots of W"""
        parts = name.split("/")
        return any("/".join(parts[:i]) in self.reader.entries for i in range(1, len(parts)))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def shape(self, name: str, *, ndim: int | None = None) -> tuple[int, ...]:
        """
        :param name: canonical
        :param ndim: expected number of axes
        :raises ConversionError: there is no such variable, or it has another number of axes
        """
        if name not in self.names:
            raise ConversionError(f"{self.reader.prefix} has no variable {name}")
        shape = self.reader.entries[self.names[name]].shape
        if ndim is not None and len(shape) != ndim:
            raise ConversionError(
                f"{self.names[name]} in {self.reader.prefix} has the shape {list(shape)}, expected {ndim} axes"
            )
        return shape

    def read(self, name: str) -> np.ndarray:
        """:return: value; name is canonical"""
        self.shape(name)
        return self.reader.read(self.names[name])

    def ignore(self, pattern: str, reason: str, *, keep: set[str] = frozenset()) -> None:
        """
        :param pattern: regular expression for whole canonical names or names in the file
        :param reason: to be shown to the user
        :param keep: canonical names that are needed nevertheless
        """
        for canonical, name in self.names.items():
            if canonical not in keep and (re.fullmatch(pattern, canonical) or re.fullmatch(pattern, name)):
                self.ignored[name] = reason

    def check_all_used(self, used: set[str], kind: str) -> None:
        """
        :param used: canonical names
        :param kind: of the model, for the message
        :raises ConversionError: a variable is neither used nor ignored
        """
        rest = [name for canonical, name in self.names.items() if canonical not in used and name not in self.ignored]
        if rest:
            listed = ", ".join(f"{name} {list(self.reader.entries[name].shape)}" for name in rest[:5])
            raise ConversionError(
                f"{len(rest)} variables of {self.reader.prefix} have no place in a model of the kind {kind}: {listed}"
                f"{' ...' if len(rest) > 5 else ''}; if that is right, leave them out with --ignore REGEX"
            )
