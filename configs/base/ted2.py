"""TED-LIUM 2: 12 x 512 Conformer, 1k sub-words."""

from __future__ import annotations

from rf_models.options import AedCtcOptions, AedCtcTrainOptions

from .corpus import CorpusOptions
from .run import Setup
from .train_options import TrainOptions

__all__ = ["setup"]

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
