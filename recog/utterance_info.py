"""
What the data say of an utterance beside audio and text: that its audio cannot be used, that there is no transcript. It
walks through RETURNN as a data key of its own, since a dataset cannot deliver "no audio".
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import returnn.frontend as rf
from returnn.tensor import TensorDict

__all__ = ["INFO_KEY", "UtteranceInfo", "mark_info", "read_info"]

INFO_KEY = "utterance_info"
"""Data key, UTF-8 bytes: empty for nearly all utterances."""
_OUTPUT = "info"


@dataclass(frozen=True)
class UtteranceInfo:
    """What is special about an utterance."""

    error: str | None = None
    """Why there is no usable audio (or transcript, where one is needed). What comes instead means nothing."""
    no_transcript: bool = False
    """The text that comes is not the reference: there is none."""
    duration: float | None = None
    """Seconds, as listed; only where the audio is of no use."""

    def as_bytes(self) -> bytes:
        """:return: empty if nothing is special"""
        return b"" if self == UtteranceInfo() else json.dumps(asdict(self)).encode()


def mark_info(extern_data: TensorDict) -> None:
    """
    Marks it as output of a forward step, for the callback.

    :param extern_data: of a batch
    """
    if INFO_KEY in extern_data.data:
        info = extern_data[INFO_KEY]
        rf.get_run_ctx().mark_as_output(info, _OUTPUT, dims=info.dims)


def read_info(outputs: TensorDict) -> UtteranceInfo:
    """
    :param outputs: of the forward step, for one utterance
    :return: what is special about it
    """
    tensor = outputs.data.get(_OUTPUT)
    content = b"" if tensor is None else bytes(np.asarray(tensor.raw_tensor, dtype=np.uint8))
    return UtteranceInfo(**json.loads(content)) if content else UtteranceInfo()
