"""
CTC label priors as text files: a header that says which domain, then one number per class, blank last::

    # ctc-prior domain=log num_classes=1058
    -3.21
    ...

Files of the original recipes have no header; those of the TensorFlow setups are logs, those of the frontend setups are
linear. They must be given one: a wrong guess costs some WER and nobody notices.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from .nbest import open_text_for_writing
from .text_file import read_text

__all__ = ["load_log_prior", "log_prior_from_counts", "posterior_sums", "save_log_prior"]

NEG_INF = float("-inf")
_MAX_BYTES = 64 * 2**20


def posterior_sums(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """
    :param log_probs: [B, T, V+1] log softmax of a CTC head
    :param lengths: [B] frames
    :return: [B, V+1] float64, posteriors summed over the frames of each utterance
    """
    inside = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths.to(log_probs.device)[:, None]
    return (log_probs.double().exp() * inside[:, :, None]).sum(dim=1)


def log_prior_from_counts(counts: Tensor, *, eos_index: int, smoothing: float = 1.0) -> Tensor:
    """
    Unigram distribution of labels, to be subtracted once per new label (``prior_type = "label"``).

    :param counts: [V] how often each label is in the training transcripts
    :param eos_index: has probability 0, since it is no label of a hypothesis
    :param smoothing: added to each count, so that labels which are never there get a finite value
    :return: [V+1] natural log; blank, which is no label, has probability 0, too
    :raises ValueError: all is 0
    """
    counts = counts.double() + smoothing
    counts[eos_index] = 0.0
    if not counts.sum() > 0:
        raise ValueError("no label was counted")
    log_prior = torch.cat([counts, counts.new_zeros(1)]).log()
    return log_prior - torch.logsumexp(log_prior, dim=0)


def save_log_prior(filename: str, log_prior: Tensor) -> None:
    """
    :param filename: written under a temporary name first
    :param log_prior: [V+1] natural log of a distribution
    """
    values = log_prior.double().tolist()
    with open_text_for_writing(filename) as file:
        file.write(f"# ctc-prior domain=log num_classes={len(values)}\n")
        file.writelines(f"{value!r}\n" for value in values)


def load_log_prior(filename: str, *, num_classes: int) -> Tensor:
    """
    :param filename:
    :param num_classes: V + 1
    :return: [V+1] float64 natural log, normalised
    :raises OSError: no such file
    :raises ValueError: no or wrong header, wrong number of values, no distribution
    """
    header, _, numbers = read_text(filename, max_bytes=_MAX_BYTES, what="prior").partition("\n")
    match = re.fullmatch(r"#\s*ctc-prior\s+domain=(log|linear)\s+num_classes=(\d{1,9})\s*", header)
    if not match:
        raise ValueError(
            f"{filename}: the first line must be '# ctc-prior domain=log num_classes=N' (or domain=linear)."
            " Priors of TensorFlow setups are logs, those of RETURNN frontend setups linear"
        )
    domain, stated = match[1], int(match[2])
    try:
        values = [float(text) for text in numbers.split()]
    except ValueError as exc:
        raise ValueError(f"{filename}: {exc}") from None
    if len(values) != stated:
        raise ValueError(f"{filename}: {len(values)} values, but the header says {stated}")
    if len(values) != num_classes:
        raise ValueError(f"{filename}: {len(values)} values, but the CTC head has {num_classes} (labels and blank)")
    prior = torch.tensor(values, dtype=torch.float64)
    if domain == "linear":
        if (prior < 0).any() or prior.isnan().any():
            raise ValueError(f"{filename}: negative values, but the header says domain=linear")
        prior = prior.log()
    total = torch.logsumexp(prior, dim=0).item()
    if not math.isfinite(total) or abs(total) > 0.05:
        raise ValueError(
            f"{filename}: the values sum up to {math.exp(min(total, 700.0)):.4g} instead of 1 (domain={domain}):"
            " wrong domain in the header?"
        )
    return prior - total
