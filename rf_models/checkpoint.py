"""
Checkpoints: does a file fit a model?
"""

from __future__ import annotations

from typing import Any

import returnn.frontend as rf

__all__ = ["check_checkpoint", "load_state_dict"]


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
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{filename} is a PyTorch file, but no checkpoint with the parameters of a model")
    return content["model"], {key: value for key, value in content.items() if key != "model"}


def check_checkpoint(filename: str, model: rf.Module) -> None:
    """
    :param filename:
    :param model:
    :raises ValueError: one sentence, if the checkpoint is not of such a model: other vocabulary, sizes or kind
    """
    state, _ = load_state_dict(filename)
    expected = {name: tuple(dim.dimension for dim in param.dims) for name, param in model.named_parameters()}
    expected = {name: shape for name, shape in expected.items() if "running_" not in name or name in state}
    found = {name: tuple(value.shape) for name, value in state.items()}
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
