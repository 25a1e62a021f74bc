"""
ESPnet's time-synchronous search on our decoder and posteriors, where the package ``espnet`` is installed.

It decodes one utterance at a time. ESPnet's blank is label 0, so that all labels move up by one.
"""

from __future__ import annotations

import importlib.util
import logging

import torch
from torch import Tensor

from recog.scorers.attention import AttentionScorer

from .setting import EOS, Setting

__all__ = ["have_espnet", "time_sync_search"]

_LOG_ZERO = -1e10

Hypothesis = tuple[tuple[int, ...], float]


def have_espnet() -> bool:
    """:return: whether espnet is installed"""
    return importlib.util.find_spec("espnet") is not None


class _Ctc(torch.nn.Module):
    """What ESPnet's scorers expect of a CTC head: here the posteriors are there already."""

    def __init__(self, log_probs: Tensor):
        """:param log_probs: [1, T, V+1], blank last"""
        super().__init__()
        self.log_probs = log_probs.roll(1, dims=2).clamp(min=_LOG_ZERO)

    def log_softmax(self, _x: Tensor) -> Tensor:
        """:return: [1, T, V+1], blank first"""
        return self.log_probs


def _decoder(scorer: AttentionScorer, utt: int):
    """:return: the decoder in ESPnet's interface, for one utterance"""
    from espnet.nets.scorer_interface import BatchScorerInterface

    class Decoder(BatchScorerInterface):
        def init_state(self, x):
            return {key: value[utt] for key, value in scorer.initial_state(scorer.enc.shape[0]).items()}

        def batch_init_state(self, x):
            return self.init_state(x)

        def score(self, y, state, x):
            log_probs, states = self.batch_score(y[None], [state], None)
            return log_probs[0], states[0]

        def batch_score(self, ys, states, xs):
            state = {key: torch.stack([s[key] for s in states]) for key in states[0]}
            rows = torch.full((len(states),), utt)
            log_probs, state = scorer.step(ys[:, -1] - 1, state, rows)
            log_probs = torch.nn.functional.pad(log_probs, (1, 0), value=_LOG_ZERO)
            return log_probs, [{key: value[i] for key, value in state.items()} for i in range(len(states))]

    return Decoder()


def _labels(yseq: Tensor) -> tuple[int, ...]:
    """:return: our labels, without EOS at both ends"""
    labels = [label - 1 for label in yseq.tolist()]
    return tuple(label for label in labels if label != EOS)


def time_sync_search(setting: Setting, utt: int, *, beam_size: int, att_scale: float, ctc_scale: float) -> Hypothesis:
    """
    ESPnet's BeamSearchTimeSync (full sum, all frames with the same scale, no EOS score).

    :param setting:
    :param utt:
    :param beam_size:
    :param att_scale:
    :param ctc_scale:
    :return: best hypothesis: labels, score
    """
    from espnet.nets.beam_search_timesync import BeamSearchTimeSync

    logging.disable(logging.WARNING)
    search = BeamSearchTimeSync(
        sos=EOS + 1,
        beam_size=beam_size,
        scorers={
            "decoder": _decoder(setting.attention_scorer(), utt),
            "ctc": _Ctc(setting.ctc.log_probs[utt : utt + 1]),
        },
        weights={"decoder": att_scale, "ctc": ctc_scale, "lm": 0.0, "length_bonus": 0.0},
        token_list=[""] * (setting.num_labels + 1),
        blank=0,
    )
    best = search(setting.memory.enc.raw_tensor[utt])[0]
    logging.disable(logging.NOTSET)
    return _labels(best.yseq), float(best.score)
