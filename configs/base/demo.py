"""The demo: synthetic speech, a closed grammar, a model that trains in minutes on two cores."""

from __future__ import annotations

from rf_models.lm_options import LstmLmOptions
from rf_models.options import AedCtcOptions, AedCtcTrainOptions

from .corpus import CorpusOptions
from .run import Setup
from .text import TRANSCRIPTS, TextOptions, TextSetup
from .train_options import LmTrainOptions, TrainOptions

__all__ = ["ilm_setup", "lm_model", "lm_setup", "setup"]

setup = Setup(
    corpus_name="demo",
    train_run="demo_train",
    prepare_command="make demo-corpus",
    corpus=CorpusOptions(
        vocab="spm_unigram_80",
        train_parts=("train",),
        dev_parts=("dev",),
        recog_parts=("dev", "test"),
        speed_perturbation=(1.0,),
        train_seq_ordering="laplace:.100",
    ),
    model=AedCtcOptions(
        num_mel_filters=40,  # half of the filters and narrow convolutions: the frontend would be half of the work
        enc_num_layers=3,
        enc_dim=128,
        enc_ff_dim=512,
        enc_num_heads=4,
        enc_conv_kernel_size=15,
        enc_frontend_channels=(16, 32, 32),
        enc_frontend_time_strides=(3, 2, 1),  # early stride, for the same reason
        ctc_layers=(3,),
        dec_embed_dim=64,
        dec_lstm_dim=192,
        dec_att_dim=128,
        dec_readout_dim=128,
        dec_dropout=0.1,
    ),
    losses=AedCtcTrainOptions(specaugment_steps=(300, 600, 1200), specaugment_max_consecutive_spatial_dims=10),
    training=TrainOptions(
        num_epochs=7,
        batch_size=40 * 16_000,
        max_seqs=64,
        peak_learning_rate=2e-3,
        lr_positions=(0.0, 0.145, 0.95, 1.0),
        weight_decay=1e-4,
        keep_last_n=3,
    ),
)

lm_setup = TextSetup(
    corpus_name="demo",
    train_run="demo_lm_train",
    prepare_command=setup.prepare_command,
    text=TextOptions(vocab=setup.corpus.vocab, num_workers=0),
    training=LmTrainOptions(
        num_epochs=4, batch_size=2_000, max_seqs=200, peak_learning_rate=1e-2, weight_decay=1e-4, keep_last_n=1
    ),
)

lm_model = LstmLmOptions(num_layers=1, embed_dim=64, lstm_dim=128, dropout=0.1)

ilm_setup = TextSetup(
    corpus_name="demo",
    train_run="demo_ilm_train",
    prepare_command=setup.prepare_command,
    text=TextOptions(vocab=setup.corpus.vocab, train_texts=(TRANSCRIPTS,), num_workers=0),
    training=LmTrainOptions(
        num_epochs=8, batch_size=2_000, max_seqs=200, peak_learning_rate=1e-2, weight_decay=0.0, keep_last_n=1
    ),
)
