"""
Options of the models and of their training losses, as frozen dataclasses with checked values.

Every field can be set in a config as a plain variable and overridden on the command line (``++enc_num_layers 6``).
Defaults are the published sizes of the LibriSpeech model (12 x 512 Conformer, attention decoder with a 1024 LSTM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

__all__ = ["DECODER_OPTIONS", "SAMPLE_RATE", "AedCtcOptions", "AedCtcTrainOptions"]

DECODER_OPTIONS = {
    "lstm": (
        "dec_embed_dim dec_lstm_dim dec_att_dim dec_readout_dim dec_dropout dec_att_dropout dec_zoneout_cell"
        " dec_zoneout_output dec_use_zoneout_output"
    ).split(),
    "transformer": (
        "dec_num_layers dec_dim dec_num_heads dec_ff dec_ff_dim dec_norm dec_rotary_pos dec_absolute_pos"
        " dec_share_embedding dec_layer_dropout dec_layer_att_dropout dec_aux_layers dec_aux_loss_scale"
    ).split(),
}
"""``dec_kind`` -> options (of model and losses) that only this kind of decoder has."""


SAMPLE_RATE = 16_000
"""Hz. All corpora are prepared with this rate."""


@dataclass(frozen=True)
class AedCtcOptions:
    """Sizes and regularisation of :class:`rf_models.aed_ctc.AedCtcModel`. Dimensions count features, not bytes."""

    # features
    num_mel_filters: int = 80
    log_mel_base: float = math.exp(2.3026)
    """Base of the logarithm of the mel energies. The original TensorFlow setup divided by 2.3026, "almost log10"."""
    mel_normalization: bool = False
    """Normalise by a global mean and standard deviation per mel filter, which are part of the checkpoint. A training
    measures them at its start."""
    feature_batch_norm: bool = False
    """Batch normalisation of the log-mel features without scale and bias, before SpecAugment. Padding is left out of
    its statistics."""

    # encoder
    enc_num_layers: int = 12
    enc_dim: int = 512
    enc_ff_dim: int = 2048
    enc_num_heads: int = 8
    enc_conv_kernel_size: int = 32
    enc_frontend_channels: tuple[int, ...] = (32, 64, 64)
    """Output channels of the 3x3 convolutions below the Conformer blocks."""
    enc_frontend_time_strides: tuple[int, ...] = (1, 3, 2)
    """Their strides in time: 1*3*2 = 6, i.e. one encoder frame per 60 ms."""
    enc_frontend_padding: Literal["same", "tf_same"] = "same"
    """"tf_same": TensorFlow's strided "same" padding by each utterance's own length, for converted checkpoints."""
    enc_dropout: float = 0.1
    enc_att_dropout: float = 0.1
    enc_input_dropout: float = 0.1
    enc_pos_emb_dropout: float = 0.0
    enc_rel_pos: Literal["shaw", "transformer_xl"] = "shaw"
    """Relative positions in self-attention: learned embeddings (Shaw et al. 2018, https://arxiv.org/abs/1803.02155),
    without biases, or sinusoids with a projection and two biases (Dai et al. 2019, https://arxiv.org/abs/1901.02860),
    all with biases."""
    enc_rel_pos_clipping: int = 16
    """Of the learned embeddings: larger distances share one."""
    enc_ff_bias: bool = True
    """Whether the matrices of the feed-forward blocks have biases."""
    enc_att_weight_dropout: float = 0.0
    """Dropout on the matrices of self-attention, not on activations (:mod:`rf_models.weight_dropout`)."""
    enc_ff_weight_dropout: float = 0.0
    """The same for the feed-forward modules."""
    enc_conv_weight_dropout: float = 0.0
    """The same for the convolution modules."""

    # CTC heads
    ctc_layers: tuple[int, ...] = (12,)
    """Encoder layers (1-based) with a CTC head. Recognition uses the top-most unless ``ctc_layer`` says otherwise."""
    ctc_window_size: int = 0
    """Frames of a Gaussian window over the input of the CTC heads (:mod:`rf_models.ctc_window`). 0: no window."""
    ctc_window_std: float = 1.0
    """Its standard deviation in frames. 0: the frame itself."""
    ctc_window_input: Literal["both", "window"] = "both"
    """What a CTC head sees: "both" the frame and its window (twice ``enc_dim``), or the window alone."""

    # attention decoder; with_decoder = False is a CTC-only model
    with_decoder: bool = True
    dec_kind: Literal["lstm", "transformer"] = "lstm"
    """See :mod:`rf_models.decoder` and :mod:`rf_models.transformer_decoder`."""

    # LSTM decoder
    dec_embed_dim: int = 640
    dec_lstm_dim: int = 1024
    dec_att_dim: int = 1024
    dec_readout_dim: int = 1024
    """Before the max-out over pairs, which halves it."""
    dec_dropout: float = 0.3
    """On the readout, before the softmax."""
    dec_att_dropout: float = 0.0
    dec_zoneout_cell: float = 0.15
    dec_zoneout_output: float = 0.05
    dec_use_zoneout_output: bool = True
    """Whether the zoned-out h is the output of the LSTM (Krueger et al. 2016), or only its state (old RETURNN, and so
    the published LibriSpeech model)."""

    # initial parameters, see rf_models/initialisation.py
    param_init: Literal["frontend", "tensorflow"] = "frontend"
    """"tensorflow": as in RETURNN's TensorFlow layers with the "fairseq" initialisation of the published training
    (of a Transformer decoder, which had none there: the encoder only)."""
    dec_embed_init_stddev: float | None = None
    """Initial label embeddings are normal with this standard deviation. None: as ``param_init`` says."""

    # Transformer decoder. The defaults are those of the published modern recipe, but for its dec_dim of 1024.
    dec_num_layers: int = 6
    dec_dim: int = 512
    dec_num_heads: int = 8
    dec_ff: Literal["relu", "swiglu"] = "swiglu"
    """Feed-forward blocks: W relu(W x) (Vaswani et al. 2017) or gated (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
    dec_ff_dim: int | None = None
    """None: 4 dec_dim for relu; two thirds of that, rounded up to a multiple of 256, for swiglu."""
    dec_norm: Literal["layer_norm", "rms_norm"] = "rms_norm"
    dec_rotary_pos: bool = True
    """Rotary positions in the self-attention (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""
    dec_absolute_pos: bool = True
    """Sinusoidal positions added to the embedding; with rotary ones, both are used."""
    dec_share_embedding: bool = True
    """Whether the softmax has the matrix of the embedding."""
    dec_layer_dropout: float = 0.1
    """On the embedding, inside of the feed-forward blocks, and on what each block adds."""
    dec_layer_att_dropout: float = 0.1
    dec_aux_layers: tuple[int, ...] = ()
    """Decoder layers (1-based) below the top one with a norm and a softmax of their own, for an auxiliary loss."""

    def __post_init__(self):
        if self.enc_dim % self.enc_num_heads:
            raise ValueError(f"enc_dim = {self.enc_dim} is not divisible by enc_num_heads = {self.enc_num_heads}")
        if len(self.enc_frontend_channels) != len(self.enc_frontend_time_strides):
            raise ValueError(
                f"enc_frontend_channels {self.enc_frontend_channels} and enc_frontend_time_strides"
                f" {self.enc_frontend_time_strides} differ in length"
            )
        if self.enc_frontend_padding not in ("same", "tf_same"):
            raise ValueError(f"enc_frontend_padding = {self.enc_frontend_padding!r}: expected same or tf_same")
        bad = [layer for layer in self.ctc_layers if not 1 <= layer <= self.enc_num_layers]
        if bad or len(set(self.ctc_layers)) != len(self.ctc_layers):
            raise ValueError(
                f"ctc_layers = {self.ctc_layers}: expected different layers of 1 ... {self.enc_num_layers}"
            )
        if not self.ctc_layers and not self.with_decoder:
            raise ValueError("the model has neither a CTC head (ctc_layers) nor a decoder (with_decoder)")
        for name in (field.name for field in fields(self) if "dropout" in field.name or "dec_zoneout" in field.name):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected 0 <= {name} < 1")
        if self.ctc_window_size < 0 or self.ctc_window_std < 0:
            raise ValueError(
                f"ctc_window_size = {self.ctc_window_size}, ctc_window_std = {self.ctc_window_std}:"
                " must not be negative"
            )
        if self.ctc_window_input not in ("both", "window"):
            raise ValueError(f"ctc_window_input = {self.ctc_window_input!r}: expected both or window")
        if self.ctc_window_size and not self.ctc_layers:
            raise ValueError(
                f"ctc_window_size = {self.ctc_window_size}, but there is no CTC head (ctc_layers is empty)"
            )
        if not self.ctc_window_size and (self.ctc_window_std, self.ctc_window_input) != (1.0, "both"):
            raise ValueError("ctc_window_std and ctc_window_input have no effect without ctc_window_size")
        if self.feature_batch_norm and self.mel_normalization:
            raise ValueError("feature_batch_norm and mel_normalization do the same: choose one")
        if self.enc_rel_pos not in ("shaw", "transformer_xl"):
            raise ValueError(f"enc_rel_pos = {self.enc_rel_pos!r}: expected shaw or transformer_xl")
        if self.enc_rel_pos != "shaw" and self.enc_rel_pos_clipping != 16:
            raise ValueError(f"enc_rel_pos_clipping has no effect with enc_rel_pos = {self.enc_rel_pos}")
        if self.param_init not in ("frontend", "tensorflow"):
            raise ValueError(f"param_init = {self.param_init!r}: expected frontend or tensorflow")
        if self.dec_embed_init_stddev is not None:
            if self.dec_embed_init_stddev <= 0:
                raise ValueError(f"dec_embed_init_stddev = {self.dec_embed_init_stddev}: expected a positive number")
            if not self.with_decoder:
                raise ValueError("dec_embed_init_stddev has no effect without decoder (with_decoder False)")
        if self.dec_readout_dim % 2:
            raise ValueError(f"dec_readout_dim = {self.dec_readout_dim}: the max-out over pairs needs an even number")
        self._check_transformer_decoder()

    def _check_transformer_decoder(self) -> None:
        """:raises ValueError: an option of the Transformer decoder is wrong"""
        for name, values in {
            "dec_kind": ("lstm", "transformer"),
            "dec_ff": ("relu", "swiglu"),
            "dec_norm": ("layer_norm", "rms_norm"),
        }.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected {' or '.join(values)}")
        if self.dec_num_layers < 1:
            raise ValueError(f"dec_num_layers = {self.dec_num_layers}: expected at least 1")
        if self.dec_ff_dim is not None and self.dec_ff_dim < 1:
            raise ValueError(f"dec_ff_dim = {self.dec_ff_dim}: expected at least 1, or None")
        if self.dec_dim % self.dec_num_heads:
            raise ValueError(f"dec_dim = {self.dec_dim} is not divisible by dec_num_heads = {self.dec_num_heads}")
        head_dim = self.dec_dim // self.dec_num_heads
        if self.dec_rotary_pos and (head_dim % 2 or head_dim < 4):
            raise ValueError(
                f"dec_dim / dec_num_heads = {head_dim}: rotary positions need an even number of at least 4 per head"
            )
        if self.dec_absolute_pos and self.dec_dim % 2:
            raise ValueError(f"dec_dim = {self.dec_dim}: absolute positions need an even number")
        bad = [layer for layer in self.dec_aux_layers if not 1 <= layer < self.dec_num_layers]
        if self.dec_kind == "transformer" and (bad or len(set(self.dec_aux_layers)) != len(self.dec_aux_layers)):
            raise ValueError(
                f"dec_aux_layers = {self.dec_aux_layers}: expected different layers below the top one,"
                f" of 1 ... {self.dec_num_layers - 1}"
            )

    @property
    def time_reduction(self) -> int:
        """Number of feature frames (10 ms) per encoder frame."""
        return math.prod(self.enc_frontend_time_strides)

    def num_encoder_frames(self, num_samples: int) -> int:
        """
        :param num_samples: of audio at 16 kHz
        :return: number of encoder frames; 0 for audio shorter than one window (25 ms)
        """
        frames = max(0, 1 + (num_samples - 400) // 160)
        for stride in self.enc_frontend_time_strides:
            frames = -(-frames // stride)
        return frames


@dataclass(frozen=True)
class AedCtcTrainOptions:
    """Losses and augmentation of :func:`rf_models.aed_ctc.train_step`."""

    aed_loss_scale: float = 1.0
    ctc_loss_scales: tuple[float, ...] = (1.0,)
    """One for each of ``ctc_layers``, or one for all."""
    dec_aux_loss_scale: float = 1.0
    """Of each of ``dec_aux_layers``, times ``aed_loss_scale``."""
    label_smoothing: float = 0.1
    ctc_with_eos: bool = False
    """Whether the CTC targets end with EOS, as in the published models (recognition then merges EOS into blank)."""

    use_specaugment: bool = True
    specaugment_steps: tuple[int, int, int] = (0, 1000, 2000)
    """Number of updates from which on more and larger masks are drawn."""
    specaugment_max_consecutive_spatial_dims: int = 20
    specaugment_max_consecutive_feature_dims: int = 16
    specaugment_num_spatial_mask_factor: int = 100

    use_mixup: bool = False
    """Add pieces of past utterances to the features, before SpecAugment (:mod:`rf_models.mixup`)."""
    mixup_prob: float = 1.0
    """Of an utterance to be mixed."""
    mixup_max_num: int = 4
    """One to so many pieces are added to an utterance."""
    mixup_lambda: tuple[float, float] = (0.1, 0.4)
    """Range of the sum of their weights."""
    mixup_buffer_frames: int = 1_000_000
    """So many past frames are kept (80 features: 320 MB)."""

    pretrain_layers: tuple[int, ...] = ()
    """Layer-wise pretraining (:mod:`rf_models.pretraining`): number of encoder layers in its stages. Numbers above
    ``enc_num_layers`` are left out."""
    pretrain_epochs: int = 3
    """Sub-epochs of a stage."""

    def __post_init__(self):
        if len(self.specaugment_steps) != 3 or list(self.specaugment_steps) != sorted(self.specaugment_steps):
            raise ValueError(
                f"specaugment_steps = {self.specaugment_steps}: expected three non-decreasing step numbers"
            )
        low, high = self.mixup_lambda
        if not 0.0 <= low <= high or not 0.0 <= self.mixup_prob <= 1.0:
            raise ValueError(
                f"mixup_lambda = {self.mixup_lambda}, mixup_prob = {self.mixup_prob}: expected a range of numbers that"
                " are not negative, and a probability"
            )
        if self.mixup_max_num < 1 or self.mixup_buffer_frames < 1:
            raise ValueError(
                f"mixup_max_num = {self.mixup_max_num}, mixup_buffer_frames = {self.mixup_buffer_frames}: expected at"
                " least 1"
            )
        mixup = {f.name: f.default for f in fields(self) if f.name.startswith("mixup_")}
        if not self.use_mixup and (unused := [n for n, default in mixup.items() if getattr(self, n) != default]):
            raise ValueError(f"{', '.join(unused)}: no effect without use_mixup True")
        if list(self.pretrain_layers) != sorted(self.pretrain_layers) or min(self.pretrain_layers, default=1) < 1:
            raise ValueError(
                f"pretrain_layers = {self.pretrain_layers}: expected numbers of layers that do not decrease, from 1"
            )
        if self.pretrain_epochs < 1:
            raise ValueError(f"pretrain_epochs = {self.pretrain_epochs}: expected at least 1")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing = {self.label_smoothing}: expected 0 <= label_smoothing < 1")
        if any(scale < 0 for scale in (self.aed_loss_scale, self.dec_aux_loss_scale, *self.ctc_loss_scales)):
            raise ValueError("loss scales must not be negative")

    def ctc_scales_for(self, ctc_layers: tuple[int, ...]) -> dict[int, float]:
        """:return: loss scale by layer number"""
        scales = self.ctc_loss_scales
        if len(scales) == 1:
            scales = scales * len(ctc_layers)
        if len(scales) != len(ctc_layers):
            raise ValueError(
                f"ctc_loss_scales = {self.ctc_loss_scales}: expected one for each of ctc_layers {ctc_layers}"
            )
        return dict(zip(ctc_layers, scales, strict=True))
