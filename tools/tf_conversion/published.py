"""
What the checkpoints of the published models do not say: options that leave no trace in names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["INVISIBLE_OPTIONS", "PublishedModel", "find_published"]

INVISIBLE_OPTIONS: dict[str, tuple[str, ...]] = {
    "aed_ctc": (
        "mel_normalization",
        "log_mel_base",
        "enc_frontend_time_strides",
        "ctc_layers",
        "dec_use_zoneout_output",
        "dec_zoneout_cell",
        "dec_zoneout_output",
    ),
    "ctc": ("mel_normalization", "log_mel_base", "enc_frontend_time_strides", "ctc_layers"),
    "lstm_lm": (),
    "transformer_lm": ("num_heads", "activation", "positional_encoding"),
    "mini_lstm_ilm": ("dec_use_zoneout_output", "dec_zoneout_cell", "dec_zoneout_output"),
}
"""For each kind, the options that change the outputs but not the parameters. All others follow from the checkpoint, or
concern the training only."""


@dataclass(frozen=True)
class PublishedModel:
    """A model that is recognised by its sizes."""

    name: str
    kinds: tuple[str, ...]
    sizes: Mapping[str, int]
    """Options, and "num_labels", that it must have."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its invisible options, where they differ from the defaults for unknown models."""
    mel_normalization: bool = False


_PUBLISHED = (
    PublishedModel(
        "LibriSpeech 960 h attention + CTC",
        ("aed_ctc", "mini_lstm_ilm"),
        {"num_labels": 10025, "enc_dim": 512, "dec_embed_dim": 640, "dec_lstm_dim": 1024},
        {"dec_use_zoneout_output": False},
    ),
    PublishedModel(
        "TED-LIUM 2 attention + CTC",
        ("aed_ctc", "mini_lstm_ilm"),
        {"num_labels": 1057, "enc_dim": 512, "dec_embed_dim": 256, "dec_lstm_dim": 1024},
        {"dec_use_zoneout_output": True},
        mel_normalization=True,
    ),
    PublishedModel(
        "TED-LIUM 2 CTC",
        ("ctc",),
        {"num_labels": 1057, "enc_dim": 512, "enc_num_layers": 12},
        mel_normalization=True,
    ),
    PublishedModel(
        "LibriSpeech Transformer LM",
        ("transformer_lm",),
        {"num_labels": 10025, "num_layers": 24, "model_dim": 1024, "ff_dim": 4096},
        {"num_heads": 8, "activation": "relu", "positional_encoding": True},
    ),
    PublishedModel(
        "TED-LIUM 2 Transformer LM",
        ("transformer_lm",),
        {"num_labels": 1057, "num_layers": 30, "model_dim": 768, "ff_dim": 4096},
        {"num_heads": 12, "activation": "gelu", "positional_encoding": False},
    ),
)


def find_published(kind: str, sizes: Mapping[str, Any]) -> PublishedModel | None:
    """
    :param kind: as on the command line
    :param sizes: options that follow from the checkpoint, and "num_labels"
    :return: the published model of these sizes
    """
    for model in _PUBLISHED:
        if kind in model.kinds and all(sizes.get(name) == size for name, size in model.sizes.items()):
            return model
    return None
