"""TED-LIUM 2: 12 x 512 Conformer, 1k sub-words."""

from __future__ import annotations

from dataclasses import replace

from rf_models.lm_options import LstmLmOptions, TransformerLmOptions
from rf_models.options import AedCtcOptions, AedCtcTrainOptions

from .corpus import CorpusOptions
from .run import Setup
from .text import TRANSCRIPTS, TextOptions, TextSetup
from .train_options import LmTrainOptions, TrainOptions

__all__ = [
    "frontend_setup",
    "ilm_setup",
    "lm_setup",
    "setup",
    "transcript_lm",
    "transcript_lm_setup",
    "transformer_lm",
]

setup = Setup(
    corpus_name="tedlium2",
    train_run="ted2_train",
    prepare_command="python tools/prepare_tedlium2.py TEDLIUM_release2 data/tedlium2 --vocab spm_unigram_1k",
    corpus=CorpusOptions(
        vocab="spm_unigram_1k",
        train_parts=("train",),
        dev_parts=("dev",),
        recog_parts=("dev", "test"),
        partition_epoch=4,
        num_workers=4,
    ),
    model=AedCtcOptions(
        mel_normalization=True,
        ctc_layers=(12,),
        enc_dropout=0.15,
        enc_att_dropout=0.15,
        enc_input_dropout=0.15,
        enc_att_weight_dropout=0.1,
        enc_ff_weight_dropout=0.1,
        enc_conv_weight_dropout=0.1,
        dec_embed_dim=256,
        param_init="tensorflow",
    ),
    losses=AedCtcTrainOptions(ctc_with_eos=True, pretrain_layers=(2, 2, 4, 6, 8, 10, 12), pretrain_epochs=3),
    training=TrainOptions(
        num_epochs=400,
        batch_size=15_000 * 160,
        accum_grad_multiple_step=2,
        peak_learning_rate=8e-4,
        lr_positions=(0.0, 0.45, 0.9, 1.0),
        lr_factors=(0.1, 1.0, 0.1, 1e-6 / 8e-4),
        lr_per_sub_epoch=True,
        optimizer_type="adam",
        weight_decay=2e-4,  # gradient of the original L2 term, 1e-4 times the sum of squares
        weight_decay_exclude=("Embedding", "LearnedRelativePositionalEncoding", "LayerNorm", "BatchNorm"),
        gradient_clip_global_norm=None,
        keep_best_n=4,
    ),
)
"""The published training of the TensorFlow setups."""

# Close to the published retraining, which had SpecAugment steps of 10k, 20k, 40k, weight decay 1e-6, and the output of
# the LSTM without zoneout.
frontend_setup = replace(
    setup,
    train_run="ted2_train_frontend",
    model=AedCtcOptions(
        ctc_layers=(4, 8, 12),
        enc_dropout=0.15,
        enc_att_dropout=0.15,
        enc_input_dropout=0.15,
        dec_embed_dim=256,
    ),
    losses=AedCtcTrainOptions(specaugment_steps=(5_000, 15_000, 25_000)),
    training=TrainOptions(
        num_epochs=400,
        batch_size=15_000 * 160,
        accum_grad_multiple_step=2,
        peak_learning_rate=1e-3,
        lr_positions=(0.0, 0.45, 0.9, 1.0),
        lr_factors=(1e-2, 1.0, 1e-2, 1e-3),
        weight_decay=1e-4,
    ),
)
"""The published retraining with RETURNN's frontend."""

lm_setup = TextSetup(
    corpus_name="tedlium2",
    train_run="ted2_lm_transformer_train",
    prepare_command=setup.prepare_command + " --lm-text TEDLIUM_release2/LM",
    text=TextOptions(vocab=setup.corpus.vocab, train_texts=("lm", TRANSCRIPTS), dev_texts=("dev",), partition_epoch=4),
    training=LmTrainOptions(
        num_epochs=100, batch_size=20_000, max_seqs=1_000, max_label_len=300, peak_learning_rate=5e-4, weight_decay=1e-2
    ),
)

transformer_lm = TransformerLmOptions(
    num_layers=30,
    embed_dim=128,
    model_dim=768,
    ff_dim=4096,
    num_heads=12,
    att_dim=768,
    activation="gelu",
    positional_encoding=False,
)

transcript_lm_setup = replace(
    lm_setup,
    train_run="ted2_lm_transcripts_train",
    text=replace(lm_setup.text, train_texts=(TRANSCRIPTS,), partition_epoch=1),
    training=replace(lm_setup.training, num_epochs=40, peak_learning_rate=1e-3),
)

transcript_lm = LstmLmOptions(num_layers=1, embed_dim=128, lstm_dim=1000, dropout=0.2)

ilm_setup = replace(
    lm_setup,
    train_run="ted2_ilm_train",
    prepare_command=setup.prepare_command,
    text=replace(lm_setup.text, train_texts=(TRANSCRIPTS,), partition_epoch=4),
    training=LmTrainOptions(num_epochs=12, batch_size=10_000, max_seqs=500, peak_learning_rate=1e-3, weight_decay=0.0),
)
