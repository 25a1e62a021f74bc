"""Memory: what is kept while a corpus is recognised, and batches that do not fit."""

from __future__ import annotations

import gc
import os

import memory_growth
import numpy
import pytest
import returnn.frontend as rf
import torch
from fork_server import fork_config
from returnn.tensor import Dim, batch_dim
from returnn.tensor import Tensor as RfTensor
from runs import REPO, SMALL_TRAINING, config_file
from tiny_models import AED, LSTM_LM, TRANSFORMER_LM, audio_batch, make_model, randomise
from tiny_setup import VOCAB, make_tiny_setup

from recog import memory
from recog.forward import run_search
from recog.inputs import encode
from recog.nbest import Hypothesis, Utterance, audit, load_nbest
from recog.options import CtcOptions, LabelSyncOptions, TimeSyncOptions
from recog.out_of_memory import is_out_of_memory, splits_when_out_of_memory
from recog.spool import UtteranceSpool
from rf_models.combined import CombinedModel
from rf_models.options import AedCtcOptions

# ---- what is kept


def test_spool(tmp_path):
    utts = [
        Utterance(f"dev/{tag}", 0.1 + 0.2, 9, ref, [Hypothesis([1, 2], "ä\n", -1 / 3, {"att": -1e-30})], error)
        for tag, ref, error in (("b", "", None), ("a", None, "an error"), ("ü", "x", None))
    ]
    spool = UtteranceSpool(str(tmp_path))
    for utt in utts:
        spool.add(utt)
    assert len(spool) == 3 and "dev/a" in spool and "dev/c" not in spool
    for _ in range(2):
        assert list(spool) == [utts[1], utts[0], utts[2]]
    assert not os.listdir(tmp_path)  # nothing stays when the process is killed
    spool.close()
    assert list(spool) == [] and "dev/a" not in spool
    spool.add(utts[0])
    assert list(spool) == [utts[0]]


def test_spool_keeps_no_hypotheses_in_memory(tmp_path):
    def num_objects() -> int:
        gc.collect()
        return sum(issubclass(type(thing), (Hypothesis, Utterance)) for thing in gc.get_objects())

    before = num_objects()  # of other tests
    spool = UtteranceSpool(str(tmp_path))
    for i in range(100):
        spool.add(Utterance(f"dev/{i}", 1.0, 9, "x", [Hypothesis([1, 2], "x", -1.0, {"att": -1.0})]))
    assert num_objects() <= before


@pytest.mark.parametrize("sync", ["label", "time"])
def test_no_tensor_stays_after_a_batch(sync):
    """Nor a dim: RETURNN keeps caches in dims, which had to be those of the batch only."""
    opts = dict(num_labels=11, eos_index=0)
    lm = make_model(TRANSFORMER_LM if sync == "label" else LSTM_LM, **opts)
    model = CombinedModel(AED, lm=lm, **opts)
    randomise(model, seed=2)
    search = LabelSyncOptions if sync == "label" else TimeSyncOptions
    search = search(att_scale=0.7, ctc_scale=0.3, lm_scale=0.3, beam_size=4)

    def things() -> dict[str, int]:
        rf.init_forward_step_run_ctx(step=0, epoch=1)
        batch_dim.reset_batch_and_raw()  # as RETURNN does before each batch
        gc.collect()
        kinds = {"tensors": torch.Tensor, "RETURNN tensors": RfTensor, "dims": Dim}
        objects = gc.get_objects()
        return {name: sum(issubclass(type(thing), kind) for thing in objects) for name, kind in kinds.items()}

    counts = []
    for number in range(6):
        rf.init_forward_step_run_ctx(step=number, epoch=1)
        audio, time_dim = audio_batch([0.5 + 0.1 * number, 0.4, 0.3][: 1 + number % 3])
        with torch.no_grad():
            encoded = encode(model, audio, in_spatial_dim=time_dim)
            result = run_search(model, encoded, search, CtcOptions())
        assert result.scores.isfinite().any()
        del audio, time_dim, encoded, result
        counts.append(things())
    assert counts[2] == counts[5], counts


def test_memory_of_a_run(capsys):
    """A short one with a loose bound. The long one is in tests/README.md."""
    assert memory_growth.main(["--num-utts", "160", "--batch", "4", "--max-growth", "12", "--runs", "timesync"]) == 0
    assert "160 utterances" in capsys.readouterr().out


# ---- batches that do not fit


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(1 << 50), lambda: numpy.empty(1 << 55), lambda: [0] * (1 << 55)]
)
def test_real_errors_are_known(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as info:
        allocate()
    assert is_out_of_memory(info.value)
    with pytest.raises(torch.OutOfMemoryError):
        splits_when_out_of_memory(lambda: allocate())()


def test_other_errors_stay():
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1") as info:
        splits_when_out_of_memory(fail)()
    assert type(info.value) is RuntimeError and not is_out_of_memory(info.value)


def test_too_long_for_the_memory_of_a_cpu(monkeypatch):
    """Known before it is tried, since Linux would kill the process."""
    opts, samples = AedCtcOptions(), 600 * 16_000
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 << 30)
    problem = memory.memory_problem(opts, samples, torch.device("cpu"))
    assert "not enough memory for 600 s of audio: the encoder needs about" in problem and "4.0 GiB are left" in problem
    assert memory.memory_problem(opts, 30 * 16_000, torch.device("cpu")) is None
    assert memory.memory_problem(opts, samples, torch.device("cuda")) is None  # a GPU says so itself
    for enough in (1 << 40, None):
        monkeypatch.setattr(memory, "available_bytes", lambda value=enough: value)
        assert memory.memory_problem(opts, samples, torch.device("cpu")) is None
    monkeypatch.undo()
    assert memory.available_bytes() is None or memory.available_bytes() > 1 << 20


SMALL_MEMORY = """#!rnn.py
import sys

sys.path.insert(0, {repo!r})


def limit_memory():
    import torch
    from recog import forward

    original = forward.encode

    def encode(model, audio, **kwargs):
        # More than two utterances do not fit, and the longest one not even alone: what torch raises then.
        if audio.raw_tensor.shape[0] > 2 or audio.raw_tensor.shape[1] >= {longest}:
            torch.empty(1 << 50)
        return original(model, audio, **kwargs)

    forward.encode = encode


limit_memory()
exec(compile(open({config!r}).read(), {config!r}, "exec"))
"""


LARGE_BATCH = """#!rnn.py
import sys

sys.path.insert(0, {repo!r})


def too_large():
    import torch
    from rf_models import aed_ctc

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, grad):
            torch.empty(1 << 50)  # what torch raises then

    original = aed_ctc.train_step

    def train_step(**kwargs):
        import returnn.frontend as rf

        original(**kwargs)
        for loss in rf.get_run_ctx().losses.values():
            loss.loss.raw_tensor = Fails.apply(loss.loss.raw_tensor)

    aed_ctc.train_step = train_step


too_large()
exec(compile(open({config!r}).read(), {config!r}, "exec"))
"""


def test_training_says_which_options_help(tmp_path):
    """In the backward pass, outside of our code."""
    setup = make_tiny_setup(str(tmp_path / "setup"))
    config = tmp_path / "large_batch.config"
    config.write_text(LARGE_BATCH.format(repo=REPO, config=config_file("demo_train")), encoding="utf8")
    options = {**SMALL_TRAINING, "data_dir": setup.data_dir, "vocab": VOCAB, "dev_parts": "dev", "device": "cpu"}
    res = fork_config(str(config).removesuffix(".config"), tmp_path, ok=False, **options)
    assert res.returncode == 1 and "Traceback" not in res.stderr
    (error,) = [line for line in res.stderr.splitlines() if line.startswith("error: ")]
    assert "not enough memory for a batch (" in error and "choose a smaller ++batch_size or ++max_seqs" in error


def test_batch_is_split_until_it_fits(tmp_path):
    setup = make_tiny_setup(str(tmp_path / "setup"))
    options = {"data_dir": setup.data_dir, "vocab": VOCAB, "recog_parts": "dev", "load": setup.checkpoints["aed"]}
    options |= {"num_workers": 0, "device": "cpu"}
    config = tmp_path / "small_memory.config"
    longest = round(2.04 * 16_000)
    config.write_text(
        SMALL_MEMORY.format(repo=REPO, longest=longest, config=config_file("demo_recog_labelsync")), encoding="utf8"
    )
    fork_config("demo_recog_labelsync", tmp_path, **options)
    res = fork_config(str(config).removesuffix(".config"), tmp_path, **options)
    assert res.stdout.count("batch and try again") == 3  # 5 -> 3 + 2, 3 -> 2 + 1, 2 -> 1 + 1
    header, utts = load_nbest(str(tmp_path / "output" / "small_memory" / "nbest.jsonl"))
    _, expected = load_nbest(str(tmp_path / "output" / "demo_recog_labelsync" / "nbest.jsonl"))
    assert len(utts) == len(expected) == 5 and not audit(header, utts)
    failed = 0
    for utt, other in zip(utts, expected, strict=True):
        assert (utt.seq_tag, utt.ref, utt.duration) == (other.seq_tag, other.ref, other.duration)
        if utt.duration * 16_000 >= longest:
            assert utt.error.startswith("not enough memory for this utterance: ") and not utt.hyps
            failed += 1
            continue
        assert utt.error is None and utt.enc_len == other.enc_len
        for mine, its in zip(utt.hyps, other.hyps, strict=True):
            assert mine.labels == its.labels and mine.score == pytest.approx(its.score, abs=1e-4)
    assert failed == 1
    table = (tmp_path / "output" / "small_memory" / "wer.txt").read_text(encoding="utf8")
    assert "in 1 utterance(s) the search failed" in table
