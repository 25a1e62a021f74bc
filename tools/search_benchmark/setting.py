"""
What the searches of the benchmark run on: a decoder of the published size with random weights, and peaky CTC posteriors
of random label sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import returnn.frontend as rf
import torch
from returnn.tensor import Dim
from returnn.tensor import Tensor as RfTensor
from torch import Tensor

from recog.core.posteriors import CtcPosteriors
from recog.scorers.attention import AttentionScorer
from recog.scorers.base import LabelScorer, State
from recog.scorers.combined import ScorerSet
from rf_models.decoder import AttentionDecoder, AttentionMemory
from rf_models.options import AedCtcOptions

__all__ = ["EOS", "LS960_SIZES", "SMALL_SIZES", "PrefixCounter", "Setting", "peaky_posteriors"]

EOS = 0
LS960_SIZES: dict[str, int] = {}
"""The defaults of the options: 512 encoder, 1024 LSTM, 1024 attention."""
SMALL_SIZES = dict(enc_dim=16, enc_num_heads=2, dec_embed_dim=12, dec_lstm_dim=20, dec_att_dim=24, dec_readout_dim=18)
"""To see whether the program runs."""


def peaky_posteriors(
    batch: int, num_frames: int, num_labels: int, *, seq_len: int, seed: int, margin: float = 4.0
) -> tuple[CtcPosteriors, Tensor]:
    """
    :param batch: B
    :param num_frames: T, of all utterances
    :param num_labels: V
    :param seq_len: labels of each utterance
    :param seed:
    :param margin: log of the odds between the right class and all others together, about: 4 is a probability of 0.97
    :return: posteriors whose EOS has probability 0; the label sequences [B, seq_len]
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_frames, num_labels + 1, generator=generator)
    labels = torch.randint(1, num_labels, (batch, seq_len), generator=generator)
    # At most every second frame has a label, so that repeated labels are possible.
    places = torch.rand(batch, (num_frames + 1) // 2, generator=generator).argsort(dim=1)[:, :seq_len]
    frames = 2 * places.sort(dim=1).values
    target = torch.full((batch, num_frames), num_labels).scatter_(1, frames, labels)
    peak = torch.tensor(float(num_labels)).log() + margin
    logits.scatter_add_(2, target[:, :, None], peak.expand(batch, num_frames, 1))
    logits[:, :, EOS] = float("-inf")
    return (
        CtcPosteriors(
            log_probs=logits.log_softmax(-1),
            lengths=torch.full((batch,), num_frames),
            frames=torch.arange(num_frames).expand(batch, num_frames),
        ),
        labels,
    )


@dataclass
class Setting:
    """A batch of utterances, ready for any search."""

    decoder: AttentionDecoder
    memory: AttentionMemory
    ctc: CtcPosteriors
    labels: Tensor  # [B, seq_len] what the posteriors say

    @classmethod
    def make(
        cls,
        *,
        num_labels: int,
        batch: int,
        num_frames: int,
        seq_len: int,
        sizes: dict[str, int] = LS960_SIZES,
        seed: int = 1,
    ) -> Setting:
        """
        :param num_labels: V
        :param batch: B
        :param num_frames: T
        :param seq_len: labels of each utterance
        :param sizes: of the decoder, by option
        :param seed:
        """
        ctc, labels = peaky_posteriors(batch, num_frames, num_labels, seq_len=seq_len, seed=seed)
        rf.select_backend_torch()
        rf.init_forward_step_run_ctx(step=0, epoch=1)
        rf.set_random_seed(seed)
        opts = AedCtcOptions(**sizes)
        enc_dim = Dim(opts.enc_dim, name="enc")
        decoder = AttentionDecoder(enc_dim, Dim(num_labels, name="labels"), opts)
        batch_dim = Dim(batch, name="batch")
        lengths = RfTensor("lengths", dims=[batch_dim], dtype="int32", raw_tensor=ctc.lengths.int())
        time_dim = Dim(lengths, name="enc-time")
        raw = torch.randn(batch, num_frames, opts.enc_dim, generator=torch.Generator().manual_seed(seed))
        enc = RfTensor("enc", dims=[batch_dim, time_dim, enc_dim], dtype="float32", raw_tensor=raw)
        enc.feature_dim = enc_dim
        return cls(decoder=decoder, memory=decoder.transform_encoder(enc, axis=time_dim), ctc=ctc, labels=labels)

    @property
    def num_labels(self) -> int:
        """V"""
        return self.decoder.target_dim.dimension

    def attention_scorer(self) -> AttentionScorer:
        """:return: the decoder as the searches run it"""
        return AttentionScorer(self.decoder, self.memory, self.ctc.lengths)

    def scorers(
        self,
        att_scale: float,
        *,
        length_reward: float = 0.0,
        wrap: Callable[[LabelScorer], LabelScorer] = lambda x: x,
    ) -> ScorerSet:
        """
        :param att_scale:
        :param length_reward:
        :param wrap: applied to the decoder's scorer
        """
        scales = {"att": att_scale, "length": length_reward}
        return ScorerSet({"att": wrap(self.attention_scorer())}, scales, num_labels=self.num_labels, eos_index=EOS)


class PrefixCounter(LabelScorer):
    """Counts the rows that a search has scored, and how many different label sequences they were."""

    def __init__(self, scorer: LabelScorer):
        """:param scorer: that does the work"""
        self.scorer = scorer
        self.num_labels = scorer.num_labels
        self.seen: list[Tensor] = []  # [N, 2] utterance, hash of the labels

    def initial_state(self, batch_size: int) -> State:
        """See :class:`LabelScorer`."""
        return {"inner": self.scorer.initial_state(batch_size), "hash": torch.zeros(batch_size, dtype=torch.int64)}

    def step(self, prev_labels: Tensor, state: State, utt: Tensor) -> tuple[Tensor, State]:
        """See :class:`LabelScorer`."""
        log_probs, inner = self.scorer.step(prev_labels, state["inner"], utt)
        hashes = state["hash"] * 0x5851F42D4C957F2D + prev_labels + 1  # modulo 2^64
        self.seen.append(torch.stack((utt, hashes), dim=1))
        return log_probs, {"inner": inner, "hash": hashes}

    @property
    def num_rows(self) -> int:
        """Rows scored"""
        return sum(len(x) for x in self.seen)

    @property
    def num_prefixes(self) -> int:
        """Different pairs of utterance and label sequence"""
        return len(torch.unique(torch.cat(self.seen), dim=0))
