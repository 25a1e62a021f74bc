"""
Checkpoints: of which model is a file, and does it fit?

What a model is (:class:`ModelInfo`) stands in the checkpoint itself (converted ones), or in ``model_info.json`` beside
the checkpoints of a training.
"""

from __future__ import annotations

import errno
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, get_type_hints

import returnn.frontend as rf

__all__ = [
    "INFO_FILE",
    "INFO_KEY",
    "ModelInfo",
    "build_model",
    "check_checkpoint",
    "load_parameters",
    "load_state_dict",
    "numbered_checkpoints",
    "options_class",
    "read_model_info",
    "save_checkpoint",
]

INFO_KEY = "model_info"
"""Key of the :class:`ModelInfo`, as a dict, in a checkpoint."""
INFO_FILE = "model_info.json"
"""The same as a file in the folder of the checkpoints."""
_MAX_LABELS = 10_000_000


@dataclass(frozen=True)
class ModelInfo:
    """What is needed to build the model of a checkpoint."""

    kind: str
    """``kind`` of the model's class: "aed_ctc", "lstm_lm", "transformer_lm", "mini_lstm_ilm"."""
    options: dict[str, Any]
    """Fields of the kind's options dataclass."""
    num_labels: int
    """V, EOS included, blank not."""
    eos_index: int
    source: dict[str, Any] = field(default_factory=dict)
    """Where the parameters come from, for the record."""
    labels_hash: str | None = None
    """Of the sub-words that the labels stand for (``recog.vocab.Vocab.labels_hash``). None: not known."""

    def as_dict(self) -> dict[str, Any]:
        """:return: plain values, as they are stored"""
        return json.loads(json.dumps(asdict(self)))  # tuples become lists

    def model_options(self) -> Any:
        """
        :return: instance of the kind's options dataclass
        :raises ValueError: unknown kind or option
        """
        cls = options_class(self.kind)
        types = get_type_hints(cls)
        if unknown := sorted(set(self.options) - set(types)):
            raise ValueError(f"options {', '.join(unknown)} of the model kind {self.kind} are not known here")
        for name, value in self.options.items():
            if types[name] in (bool, int, str) and type(value) is not types[name]:
                raise ValueError(f"{name} = {value!r}: expected {types[name].__name__}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in self.options.items()})

    def __post_init__(self):
        types = {"kind": str, "options": dict, "num_labels": int, "eos_index": int, "source": dict}
        for name, type_ in types.items():
            if type(getattr(self, name)) is not type_:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected {type_.__name__}")
        if not 0 <= self.eos_index < self.num_labels <= _MAX_LABELS:
            raise ValueError(f"num_labels {self.num_labels}, eos_index {self.eos_index}: expected 0 <= eos_index < V")


def _model_classes() -> dict[str, tuple[type, type]]:
    """:return: kind -> class of the model, class of its options"""
    from .aed_ctc import AedCtcModel
    from .ilm import MiniLstmIlm
    from .lm import LstmLm, TransformerLm
    from .lm_options import LstmLmOptions, MiniLstmIlmOptions, TransformerLmOptions
    from .options import AedCtcOptions

    classes = {
        AedCtcModel: AedCtcOptions,
        LstmLm: LstmLmOptions,
        TransformerLm: TransformerLmOptions,
        MiniLstmIlm: MiniLstmIlmOptions,
    }
    return {model.kind: (model, options) for model, options in classes.items()}


def options_class(kind: str) -> type:
    """
    :return: options dataclass of a model kind
    :raises ValueError: unknown kind
    """
    classes = _model_classes()
    if kind not in classes:
        raise ValueError(f"model kind {kind!r}: expected one of {', '.join(sorted(classes))}")
    return classes[kind][1]


def build_model(info: ModelInfo) -> rf.Module:
    """:return: model with initial parameters; to be loaded"""
    options = info.model_options()
    return _model_classes()[info.kind][0](options, num_labels=info.num_labels, eos_index=info.eos_index)


def read_model_info(filename: str) -> ModelInfo | None:
    """
    :param filename: checkpoint
    :return: of the model in it; None if neither the file nor its folder says
    :raises ValueError: not a checkpoint, or malformed information
    """
    _, rest = load_state_dict(filename)
    content, where = rest.get(INFO_KEY), filename
    if content is None:
        where = os.path.join(os.path.dirname(filename), INFO_FILE)
        if not os.path.isfile(where):
            return None
        with open(where, encoding="utf8") as file:
            try:
                content = json.load(file)
            except (ValueError, RecursionError) as exc:
                raise ValueError(f"{where}: not JSON: {exc}") from None
    try:
        info = ModelInfo(**content)
        info.model_options()
    except (TypeError, ValueError, ArithmeticError) as exc:
        raise ValueError(f"{where}: not the description of a model that can be used here: {exc}") from None
    return info


def numbered_checkpoints(folder: str, *, ending: str = ".pt") -> dict[int, str]:
    """
    :param folder: of the checkpoints of a training
    :param ending: ".pt": models, ".opt.pt": states of the optimiser
    :return: number of the sub-epoch -> file. Empty if there is no such folder
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    matches = [re.fullmatch(r"epoch\.(\d+)" + re.escape(ending), name) for name in names]
    return {int(match[1]): os.path.join(folder, match[0]) for match in matches if match}


def load_state_dict(filename: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    :param filename: checkpoint of RETURNN's PyTorch engine, or of the converter
    :return: parameters by name (memory-mapped, on the CPU), everything else in the file
    :raises ValueError: not such a file
    """
    import torch

    try:
        content = torch.load(filename, map_location="cpu", weights_only=True, mmap=True)
    except Exception as exc:  # torch raises many kinds for a damaged file
        raise ValueError(f"{filename} is not a readable PyTorch checkpoint: {exc}") from None
    parameters = content.get("model") if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in parameters.items()
    ):
        raise ValueError(f"{filename} is a PyTorch file, but no checkpoint with the parameters of a model")
    return content["model"], {key: value for key, value in content.items() if key != "model"}


def check_checkpoint(filename: str, model: rf.Module, *, ignore_prefixes: tuple[str, ...] = ()) -> None:
    """
    :param filename:
    :param model:
    :param ignore_prefixes: parameters of the checkpoint whose names begin so may have no place in the model
    :raises ValueError: one sentence, if the checkpoint is not of such a model: other vocabulary, sizes or kind
    """
    state, _ = load_state_dict(filename)
    expected = {name: tuple(dim.dimension for dim in param.dims) for name, param in _parameters(model).items()}
    expected = {name: shape for name, shape in expected.items() if "running_" not in name or name in state}
    found = {name: tuple(value.shape) for name, value in state.items() if not name.startswith(ignore_prefixes)}
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    wrong = [name for name in sorted(set(expected) & set(found)) if expected[name] != found[name]]
    label_params = [name for name in wrong if "output_prob" in name or "ctc_heads" in name or "target_embed" in name]
    if label_params and set(wrong) == set(label_params):
        name = label_params[0]
        raise ValueError(
            f"{filename} was trained with another vocabulary: {name} has the shape {found[name]}, but this run's"
            f" vocabulary needs {expected[name]}; choose the right one with ++vocab"
        )
    details = [f"{name} has the shape {found[name]} instead of {expected[name]}" for name in wrong[:3]]
    if missing:
        details.append(f"{len(missing)} parameters are missing, for example {missing[0]}")
    if surplus:
        details.append(f"{len(surplus)} parameters are unknown, for example {surplus[0]}")
    if details:
        raise ValueError(f"{filename} does not fit the model of this run: {'; '.join(details)}")


def _parameters(model: rf.Module) -> dict[str, rf.Parameter]:
    """:return: as in checkpoints, where a parameter that two modules share has two names"""
    return {
        f"{prefix}.{name}" if prefix else name: param
        for prefix, module in model.named_modules()
        for name, param in module.named_parameters(recurse=False)
    }


def load_parameters(model: rf.Module, filename: str) -> None:
    """
    Loads a whole checkpoint into a model or a part of one.

    :param model:
    :param filename:
    :raises ValueError: see :func:`check_checkpoint`
    """
    import torch

    check_checkpoint(filename, model)
    state, _ = load_state_dict(filename)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name in state:  # not so for statistics that a checkpoint need not have
                param.raw_tensor.copy_(state[name])


def save_checkpoint(content: dict[str, Any], filename: str) -> None:
    """
    Writes a checkpoint under a temporary name first; the same content gives the same file.

    :param content:
    :param filename:
    :raises OSError: if it cannot be written; nothing is left then
    """
    import torch

    temporary = filename + ".tmp"
    try:
        torch.save(content, temporary)
        os.replace(temporary, filename)
    except BaseException as exc:
        with suppress(OSError):
            os.remove(temporary)
        if isinstance(exc, RuntimeError):  # torch does not say more than that it failed
            reason = "it cannot be written: no space left, or a quota or a limit of the file size is reached"
            raise OSError(errno.ENOSPC, reason, filename) from None
        raise
