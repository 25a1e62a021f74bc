"""The forward callback, with outputs as RETURNN hands them over (NumPy arrays without batch axis)."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from returnn.tensor import Dim, Tensor, TensorDict

from recog import results
from recog.callback import RecogCallback, RecogError
from recog.nbest import NBestHeader, audit, load_nbest
from recog.utterance_info import UtteranceInfo
from recog.vocab import Vocab

WORDS = ["<s>", "turn", "left", "right", "stop"]
HEADER = NBestHeader("time_sync", {"att": 0.5, "ctc": 0.5, "lm": 0.0}, vocab={"num_labels": len(WORDS)})


class WordVocab(Vocab):
    """One label per word."""

    def labels_to_text(self, labels):
        return " ".join(WORDS[i] for i in labels)


VOCAB = WordVocab("words", "bpe", len(WORDS), 0, {})


def make_outputs(hyps, *, ref="turn left", n_best=3, duration=2.0, pad_label=4, **changes):
    """:param hyps: list of (labels, att score, ctc score), the best first; to be padded to n_best"""
    max_len = max([len(labels) for labels, _, _ in hyps], default=0)
    labels = np.full([n_best, max_len], pad_label, dtype="int32")
    lengths = np.zeros([n_best], dtype="int32")
    scores, att, ctc = (np.full([n_best], -np.inf, dtype="float32") for _ in range(3))
    for i, (seq, att_score, ctc_score) in enumerate(hyps):
        labels[i, : len(seq)], lengths[i] = seq, len(seq)
        att[i], ctc[i], scores[i] = att_score, ctc_score, 0.5 * att_score + 0.5 * ctc_score
    raw = {
        "labels": labels,
        "label_lengths": lengths,
        "scores": scores,
        "score_att": att,
        "score_ctc": ctc,
        "enc_len": np.array(7, dtype="int32"),
        "duration": np.array(duration, dtype="float32"),
        "encoder_time": np.array(0.25, dtype="float32"),
        "search_time": np.array(0.5, dtype="float32"),
    }
    if ref is not None:
        raw["ref"] = np.frombuffer(ref.encode("utf8"), dtype="uint8")
    raw.update(changes)
    outputs = TensorDict()
    for name, value in raw.items():
        dims = [Dim(size, name=f"{name}{axis}") for axis, size in enumerate(value.shape)]
        outputs.data[name] = Tensor(name, dims=dims, dtype=str(value.dtype), raw_tensor=value)
    return outputs


SEQS = {
    "test/b": make_outputs([([1, 2], -0.1, -0.3), ([1], -4.0, -2.0)]),
    "test/a": make_outputs([([1, 3, 4], -0.1, -0.3), ([], -4.0, -2.0), ([1], -9.0, -9.0)], ref="turn right"),
    "dev/c": make_outputs([], ref="turn é"),
    "dev/d": make_outputs([([4], -1.0, -1.0)], ref=""),
}


def run(folder, seqs, *, num_seqs=None, order=list, **kwargs):
    num_seqs = len(seqs) if num_seqs is None else num_seqs
    filename = str(folder / "nbest.jsonl")
    callback = RecogCallback(filename, header=HEADER, vocab=VOCAB, num_seqs=num_seqs, **kwargs)
    callback.init(model=None)
    for tag in order(seqs):
        callback.process_seq(seq_tag=tag, outputs=seqs[tag])
    callback.finish()
    return filename


def test_files(tmp_path, capsys):
    filename = run(tmp_path, SEQS, returnn_search_output=True)
    header, utts = load_nbest(filename)
    assert header == HEADER
    assert [utt.seq_tag for utt in utts] == ["dev/c", "dev/d", "test/a", "test/b"]
    assert audit(header, utts) == []
    best = utts[3].hyps[0]
    assert (best.labels, best.text, best.score) == ([1, 2], "turn left", -0.2)
    assert best.scores == {"att": -0.1, "ctc": -0.3}  # float32 without the digits that it does not have
    assert [len(utt.hyps) for utt in utts] == [0, 1, 3, 2]
    assert utts[2].hyps[1].text == ""
    assert utts[0].ref == "turn é" and utts[0].error is not None and utts[1].ref == "" and utts[1].error is None
    assert (utts[3].enc_len, utts[3].duration) == (7, 2.0)

    with open(tmp_path / "wer.json", encoding="utf8") as file:
        wer = json.load(file)
    assert wer["search"] == "time_sync"
    assert (wer["parts"]["test"]["num_utts"], wer["parts"]["test"]["num_ins"]) == (2, 1)
    assert (wer["parts"]["dev"]["num_del"], wer["parts"]["dev"]["num_failed"]) == (2, 1)
    assert wer["total"]["num_ref_words"] == 6 and wer["total"]["num_errors"] == 4
    assert wer["time"]["audio_seconds"] == 8.0
    assert wer["time"]["encoder_real_time_factor"] == pytest.approx(1.0 / 8)
    assert wer["time"]["search_real_time_factor"] == pytest.approx(2.0 / 8)
    assert wer["time"]["total_real_time_factor"] == pytest.approx(3.0 / 8)

    text = (tmp_path / "wer.txt").read_text(encoding="utf8")
    assert "total 4 6 66.67 0 2 2 75.00" in " ".join(text.split())
    assert "Real time factor 0.3750: encoder 0.1250, search 0.2500" in text
    printed = capsys.readouterr().out
    assert text in printed and "4 utterances, n-best lists in" in printed

    content = ast.literal_eval((tmp_path / "search_out.py").read_text(encoding="utf8"))
    assert content["test/b"] == [(-0.2, "turn left"), (-3.0, "turn")]
    assert sorted(os.listdir(tmp_path)) == ["nbest.jsonl", "search_out.py", "wer.json", "wer.txt"]


def test_order_of_the_utterances_has_no_effect(tmp_path):
    contents = []
    for name, order in (("x", list), ("y", sorted), ("z", lambda seqs: reversed(list(seqs)))):
        (tmp_path / name).mkdir()
        with open(run(tmp_path / name, SEQS, order=order), "rb") as file:
            contents.append(file.read())
    assert contents[0] == contents[1] == contents[2]
    assert sorted(os.listdir(tmp_path / "x")) == ["nbest.jsonl", "wer.json", "wer.txt"]


@pytest.mark.parametrize("num_seqs", [5, 3])
def test_wrong_number_of_utterances(tmp_path, num_seqs):
    for name in ("nbest.jsonl", "wer.txt", "wer.json"):
        (tmp_path / name).write_text("of the run before\n")
    with pytest.raises(RecogError, match=f"4 utterances arrived, but the corpus has {num_seqs}") as info:
        run(tmp_path, SEQS, num_seqs=num_seqs)
    assert isinstance(info.value, SystemExit) and str(info.value.code).startswith("error: ")
    assert os.listdir(tmp_path) == []


def test_old_results_are_gone_when_a_new_run_is_interrupted(tmp_path):
    filename = run(tmp_path, SEQS)
    callback = RecogCallback(filename, header=HEADER, vocab=VOCAB, num_seqs=4)
    assert os.path.exists(filename)  # making the object, as loading a config does, changes nothing
    callback.init(model=None)
    callback.process_seq(seq_tag="test/a", outputs=SEQS["test/a"])
    assert os.listdir(tmp_path) == []


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_args):
        raise OSError("No space left on device")

    monkeypatch.setattr(results, "NBestWriter", fail)
    with pytest.raises(OSError, match="No space"):
        run(tmp_path, SEQS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (make_outputs([([1], np.inf, -1.0)]), "finite"),
        (make_outputs([([1], -5.0, -1.0), ([2], -1.0, -1.0)]), "best first"),
        (make_outputs([([5], -5.0, -1.0)]), "not a label"),
        (make_outputs([([1], -1.0, -1.0)], score_ctc=np.array([-np.inf] * 3, dtype="float32")), '"ctc"'),
        (make_outputs([([1], -1.0, -1.0)], score_ilm=np.zeros([3], dtype="float32")), '"ilm" has no scale'),
        (make_outputs([([1], -1.0, -1.0)], duration=np.nan), "duration"),
        (make_outputs([([-1], -5.0, -1.0)]), "not a label"),
    ],
)
def test_wrong_outputs_are_refused_with_the_name_of_the_utterance(tmp_path, outputs, message):
    callback = RecogCallback(str(tmp_path / "nbest.jsonl"), header=HEADER, vocab=VOCAB, num_seqs=1)
    callback.init(model=None)
    with pytest.raises(RecogError, match=message) as info:
        callback.process_seq(seq_tag="test/1", outputs=outputs)
    assert "'test/1'" in str(info.value)


def with_info(outputs, **info):
    content = np.frombuffer(UtteranceInfo(**info).as_bytes(), dtype="uint8")
    outputs.data["info"] = Tensor("info", dims=[Dim(len(content))], dtype="uint8", raw_tensor=content)
    return outputs


def test_failed_utterances_have_an_entry(tmp_path, capsys):
    """NaN of the search; audio that could not be read, where the outputs mean nothing; no transcript."""
    seqs = {
        "test/nan": make_outputs([([1], np.nan, -1.0)]),
        "test/audio": with_info(make_outputs([([1], -1.0, -1.0)], ref="turn left"), error="truncated", duration=3.5),
        "test/text": with_info(make_outputs([([1], -1.0, -1.0)], ref=""), no_transcript=True),
    }
    _, utts = load_nbest(run(tmp_path, {**seqs, "test/b": SEQS["test/b"]}))
    audio, good, nan, text = utts
    assert "NaN" in nan.error and nan.hyps == [] and nan.ref == "turn left"
    assert (audio.error, audio.hyps, audio.duration, audio.enc_len) == ("truncated", [], 3.5, None)
    assert text.error is None and text.ref is None and text.hyps and good.hyps
    wer = json.loads((tmp_path / "wer.json").read_text())
    assert (wer["total"]["num_failed"], wer["total"]["num_del"], wer["total"]["num_no_ref"]) == (2, 4, 1)
    assert wer["time"]["audio_seconds"] == 6.0
    assert "2 of 4 utterances failed: test/audio: truncated; test/nan: " in capsys.readouterr().out
    (tmp_path / "all").mkdir()
    del seqs["test/text"]
    with pytest.raises(RecogError, match=r"all 2 utterances failed\. No results are written\. .*test/audio: truncated"):
        run(tmp_path / "all", seqs)
    assert os.listdir(tmp_path / "all") == []


def test_broken_reference_text(tmp_path):
    outputs = make_outputs([([1], -1.0, -1.0)], ref=None)
    outputs.data["ref"] = Tensor("ref", dims=[Dim(1)], dtype="uint8", raw_tensor=np.array([255], dtype="uint8"))
    with pytest.raises(RecogError, match=r"'test/1': .*utf-8"):
        run(tmp_path, {"test/1": outputs})


def test_utterance_twice(tmp_path):
    with pytest.raises(RecogError, match="'test/a' came twice"):
        run(tmp_path, SEQS, order=lambda seqs: ["test/a", "test/a"])


def test_missing_component(tmp_path):
    outputs = make_outputs([([1], -1.0, -1.0)])
    del outputs.data["score_att"]
    with pytest.raises(RecogError, match=r'no score "att", which has the scale 0\.5'):
        run(tmp_path, {"test/1": outputs})


def test_without_references_and_without_audio(tmp_path):
    run(tmp_path, {"test/1": make_outputs([([1], -1.0, -1.0)], ref=None, duration=0.0)})
    text = (tmp_path / "wer.txt").read_text(encoding="utf8")
    assert "1 utterance(s) without a reference are left out" in text and "not defined, there was no audio" in text
    wer = json.loads((tmp_path / "wer.json").read_text())
    assert wer["total"]["wer_percent"] is None and wer["time"]["total_real_time_factor"] is None
    assert load_nbest(str(tmp_path / "nbest.jsonl"))[1][0].ref is None


def test_progress(tmp_path, capsys):
    callback = RecogCallback(str(tmp_path / "nbest.jsonl"), header=HEADER, vocab=VOCAB, num_seqs=4)
    callback.init(model=None)
    callback.progress.interval = 0.0
    callback.process_seq(seq_tag="test/a", outputs=SEQS["test/a"])
    assert "recognition: 25 %, 1 of 4 utterances" in capsys.readouterr().out


RETURNN_CONFIG = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from recog.callback import RecogCallback
from recog.nbest import NBestHeader
from recog.vocab import Vocab
import returnn.frontend as rf
from returnn.tensor import Dim, Tensor, batch_dim

backend, behavior_version, task, device = "torch", 24, "forward", "cpu"
log_verbosity = 3
texts = ["turn left", "turn", "stop"]
forward_data = {{
    "class": "StaticDataset",
    "data": [
        {{"data": np.array([1] * (4 - i), dtype="int32"), "ref": np.frombuffer(text.encode("utf8"), dtype="uint8")}}
        for i, text in enumerate(texts)
    ],
    "output_dim": {{"data": (5, 1), "ref": (256, 1)}},
}}
extern_data = {{
    "data": {{"dims": [batch_dim, Dim(None, name="time")], "sparse_dim": Dim(5, name="labels"), "dtype": "int32"}},
    "ref": {{"dims": [batch_dim, Dim(None, name="bytes")], "sparse_dim": Dim(256, name="byte"), "dtype": "uint8"}},
}}
batch_size = 100
torch_dataloader_opts = {{"num_workers": 0}}


class NumberVocab(Vocab):
    def labels_to_text(self, labels):
        return " ".join(map(str, labels))


def get_model(**_kwargs):
    return rf.Linear(Dim(2, name="in"), Dim(2, name="out"))


def forward_step(*, model, extern_data, **_kwargs):
    import torch

    ctx = rf.get_run_ctx()
    data = extern_data["data"]
    lengths = data.dims[1].dyn_size
    num = lengths.shape[0]
    n_best, label_axis = Dim(2, name="n_best"), Dim(int(lengths.max()), name="label")
    labels = data.copy_compatible_to_dims_raw([batch_dim, data.dims[1]])[:, None].expand(-1, 2, -1)
    scores = torch.tensor([-1.0, float("-inf")]).expand(num, 2)
    def output(name, dims, value):
        tensor = Tensor(name, dims, str(value.dtype)[6:], raw_tensor=value)
        ctx.mark_as_output(tensor, name, dims=dims)

    output("labels", [batch_dim, n_best, label_axis], labels.to(torch.int32))
    raw = {{"label_lengths": lengths[:, None].expand(-1, 2).to(torch.int32), "scores": scores}}
    raw.update({{"score_att": scores, "score_ctc": scores}})
    for name, value in raw.items():
        output(name, [batch_dim, n_best], value)
    for name in ("duration", "encoder_time", "search_time"):
        output(name, [batch_dim], torch.ones(num))
    output("enc_len", [batch_dim], lengths.to(torch.int32))
    ctx.mark_as_output(extern_data["ref"], "ref", dims=extern_data["ref"].dims)


forward_callback = RecogCallback(
    {nbest!r},
    header=NBestHeader("test", {{"att": 0.5, "ctc": 0.5}}, vocab={{"num_labels": 5}}),
    vocab=NumberVocab("numbers", "bpe", 5, 0, {{}}),
    num_seqs={num_seqs},
)
"""


@pytest.mark.parametrize("num_seqs", [3, 4])
def test_in_returnn(tmp_path, num_seqs):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    nbest = str(tmp_path / "nbest.jsonl")
    config = tmp_path / "test.config"
    config.write_text("#!rnn.py\n" + RETURNN_CONFIG.format(root=root, nbest=nbest, num_seqs=num_seqs))
    result = subprocess.run(
        [sys.executable, "-m", "returnn", str(config)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    output = result.stdout + result.stderr
    if num_seqs == 4:
        assert result.returncode == 1
        assert "error: 3 utterances arrived, but the corpus has 4" in output and "Traceback" not in output
        assert not os.path.exists(nbest)
        return
    assert result.returncode == 0, output
    _, utts = load_nbest(nbest)
    assert [(utt.ref, [hyp.labels for hyp in utt.hyps]) for utt in utts] == [
        ("turn left", [[1, 1, 1, 1]]),
        ("turn", [[1, 1, 1]]),
        ("stop", [[1, 1]]),
    ]
    assert "Real time factor 2.0000: encoder 1.0000, search 1.0000 (3 s of audio in 6.0 s" in output
