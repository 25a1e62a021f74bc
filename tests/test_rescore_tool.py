"""tools/rescore.py: other scales, components of other runs."""

from __future__ import annotations

import json

import pytest

from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance, audit, load_nbest
from tools.rescore import main

VOCAB = {"name": "v", "num_labels": 9}


def write(filename, search, scales, lists, vocab=VOCAB):
    """:param lists: seq tag -> list of (labels, text, scores)"""
    header = NBestHeader(search, scales, vocab=vocab)
    with NBestWriter(str(filename), header) as writer:
        for tag, hyps in lists.items():
            made = [Hypothesis(y, text, sum(scales[n] * s[n] for n in s), s) for y, text, s in hyps]
            error = None if made else "nothing"
            writer.write(Utterance(tag, 1.0, 9, "a b", sorted(made, key=lambda h: -h.score), error))
    return str(filename)


@pytest.fixture
def first(tmp_path):
    lists = {
        "dev/1": [([1, 2], "a b", {"att": -3.0, "ctc": -2.0}), ([1, 3], "a c", {"att": -1.0, "ctc": -3.0})],
        "dev/2": [([1, 2], "a b", {"att": -1.0, "ctc": -1.0}), ([], "", {"att": -1.0, "ctc": -5.0})],
        "dev/3": [],
    }
    return write(tmp_path / "first.jsonl", "label_sync", {"att": 1.0, "ctc": 0.5}, lists)


def test_other_scales(first, tmp_path, capsys):
    out = str(tmp_path / "new" / "nbest.jsonl")
    arguments = ["--scales", "ctc=1,att=0.1", "--length-norm-exponent", "1", "--json", str(tmp_path / "wer.json")]
    assert main([first, "--out", out, *arguments]) == 0
    header, utterances = load_nbest(out)
    assert header.search == "rescore" and not audit(header, utterances)
    assert header.scales == {"att": 0.1, "ctc": 1.0, "first_pass": 0.0}
    assert [[hyp.text for hyp in utt.hyps] for utt in utterances] == [["a b", "a c"], ["a b", ""], []]
    assert utterances[0].hyps[0].score == pytest.approx((0.1 * -3 - 2) / 3)
    assert utterances[0].hyps[0].scores["first_pass"] == pytest.approx(-4.0)
    with open(tmp_path / "wer.json", encoding="utf8") as file:
        record = json.load(file)
    assert record["second pass"]["total"]["num_errors"] < record["first pass"]["total"]["num_errors"]
    assert "second pass" in capsys.readouterr().out


def test_scores_of_another_model(first, tmp_path, capsys):
    lists = {
        "dev/1": [([1, 3], "a c", {"att": -9.0}), ([1, 2], "a b", {"att": -1.0})],
        "dev/2": [([1, 2], "a b", {"att": -2.0})],
        "dev/3": [],
    }
    other = write(tmp_path / "other.jsonl", "rescore", {"att": 1.0}, lists)
    out = str(tmp_path / "out.jsonl")
    assert main([first, "--add", f"b:{other}", "--scales", "first_pass=1,b.att=0.5", "--out", out]) == 0
    header, utterances = load_nbest(out)
    assert not audit(header, utterances)
    assert {name: scale for name, scale in header.scales.items() if scale} == {"first_pass": 1.0, "b.att": 0.5}
    assert [[hyp.text for hyp in utt.hyps] for utt in utterances] == [["a b", "a c"], ["a b"], []]
    assert utterances[0].hyps[0].score == pytest.approx(-4.0 - 0.5)
    assert "1 hypotheses are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scales", "lm=1"], "has no component 'lm', only att, ctc, first_pass"),
        (["--scales", "att=1", "--add", "x:{missing}"], "has no utterance 'dev/2' (2 of 3 are missing)"),
        (["--scales", "att=1", "--add", "x:{vocab}"], "has another vocabulary than"),
        (["--scales", "att=1", "--add", "x:nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(first, tmp_path, capsys, arguments, message):
    files = {
        "missing": write(tmp_path / "missing.jsonl", "rescore", {"att": 1.0}, {"dev/1": []}),
        "vocab": write(tmp_path / "vocab.jsonl", "rescore", {"att": 1.0}, {"dev/1": []}, {"num_labels": 8}),
    }
    out = tmp_path / "out.jsonl"
    assert main([first, *(a.format(**files) for a in arguments), "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_results_are_not_overwritten(first, capsys):
    assert main([first, "--scales", "att=1", "--out", first]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("scales", ["att", "att=x", "=1", "att=nan", "att=1,,ctc=1", "att=inf"])
def test_scales_that_are_none(first, capsys, scales):
    with pytest.raises(SystemExit):
        main([first, "--scales", scales, "--out", "x.jsonl"])
    assert "expected NAME=SCALE" in capsys.readouterr().err
