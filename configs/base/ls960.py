"""LibriSpeech 960 h: 12 x 512 Conformer, 10k sub-words."""

from __future__ import annotations

from dataclasses import replace

from rf_models.lm_options import LstmLmOptions, TransformerLmOptions
from rf_models.options import AedCtcOptions, AedCtcTrainOptions

from .corpus import CorpusOptions
from .run import Setup
from .text import TRANSCRIPTS, TextOptions, TextSetup
from .train_options import LmTrainOptions, TrainOptions

__all__ = ["ilm_setup", "lm_setup", "lstm_lm", "setup", "transformer_lm"]

setup = Setup(
    corpus_name="librispeech",
    train_run="ls960_train",
    prepare_command="python tools/prepare_librispeech.py LIBRISPEECH data/librispeech --vocab spm_unigram_10k",
    corpus=CorpusOptions(
        vocab="spm_unigram_10k",
        train_parts=("train-clean-100", "train-clean-360", "train-other-500"),
        dev_parts=("dev-clean", "dev-other"),
        recog_parts=("dev-clean", "dev-other", "test-clean", "test-other"),
        partition_epoch=20,
        curriculum_epochs=5,
        num_workers=4,
    ),
    model=AedCtcOptions(
        ctc_layers=(4, 8, 12),  # the top one is what joint search uses
        enc_pos_emb_dropout=0.1,
        dec_embed_dim=640,
    ),
    losses=AedCtcTrainOptions(specaugment_steps=(5_000, 15_000, 25_000)),
    training=TrainOptions(
        num_epochs=2000,
        batch_size=40_000 * 160,
        max_label_len=75,
        accum_grad_multiple_step=2,
        peak_learning_rate=1e-3,
        lr_positions=(0.0, 0.611, 0.917, 1.0),  # 600k, 900k, 982k updates
        lr_factors=(1e-2, 1.0, 1e-2, 1e-3),
        weight_decay=1e-6,
        adam_eps=1e-16,
    ),
)

lm_setup = TextSetup(
    corpus_name="librispeech",
    train_run="ls960_lm_transformer_train",
    prepare_command=setup.prepare_command + " --lm-text librispeech-lm-norm.txt.gz",
    text=TextOptions(
        vocab=setup.corpus.vocab,
        train_texts=("lm", TRANSCRIPTS),
        dev_texts=("dev-clean", "dev-other"),
        train_parts=setup.corpus.train_parts,
        partition_epoch=100,  # 0.4 M of the 40 M sentences
    ),
    training=LmTrainOptions(
        num_epochs=500, batch_size=20_000, max_seqs=1_000, max_label_len=300, peak_learning_rate=5e-4, weight_decay=1e-3
    ),
)

lstm_lm = LstmLmOptions(num_layers=4, embed_dim=128, lstm_dim=2048)
transformer_lm = TransformerLmOptions(num_layers=24, embed_dim=128, model_dim=1024, ff_dim=4096, num_heads=8)

ilm_setup = replace(
    lm_setup,
    train_run="ls960_ilm_train",
    prepare_command=setup.prepare_command,
    text=replace(lm_setup.text, train_texts=(TRANSCRIPTS,), partition_epoch=20),
    training=LmTrainOptions(num_epochs=60, batch_size=10_000, max_seqs=500, peak_learning_rate=1e-3, weight_decay=0.0),
)
