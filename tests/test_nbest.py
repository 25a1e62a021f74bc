"""N-best files: what is written is read again, and what is wrong is refused with file and line."""

from __future__ import annotations

import ast
import gzip
import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recog.nbest import (
    Hypothesis,
    NBestFormatError,
    NBestHeader,
    NBestWriter,
    Utterance,
    audit,
    load_nbest,
    open_text_for_writing,
    read_nbest,
    total_score,
    write_returnn_search_output,
)

HEADER = NBestHeader(
    search="label_sync",
    scales={"att": 0.7, "ctc": 0.3, "ilm": -0.2, "lm": 0.0},
    length_norm_exponent=1.0,
    options={"beam_size": 12},
    vocab={"name": "demo", "num_labels": 10, "eos_index": 0},
)


def make_hyp(labels, att, ctc, ilm, *, text="a"):
    score = (0.7 * att + 0.3 * ctc - 0.2 * ilm) / (len(labels) + 1)
    return Hypothesis(labels, text, score, {"att": att, "ctc": ctc, "ilm": ilm})


def make_utt(tag="test/1", **kwargs):
    hyps = [make_hyp([1, 2], -1.0, -2.0, -3.0, text="b c"), make_hyp([], -9.0, -9.0, -1.0, text="")]
    return Utterance(**{"seq_tag": tag, "duration": 2.5, "enc_len": 40, "ref": "b c", "hyps": hyps, **kwargs})


def write(filename, utterances, header=HEADER):
    with NBestWriter(str(filename), header) as writer:
        for utt in utterances:
            writer.write(utt)
    return str(filename)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
HYP = st.builds(
    Hypothesis,
    labels=st.lists(st.integers(0, 9), max_size=5),
    text=TEXT,
    score=NUMBER,
    scores=st.fixed_dictionaries({"att": NUMBER, "ctc": NUMBER, "ilm": NUMBER}, optional={"lm": NUMBER}),
)
UTT = st.builds(
    Utterance,
    seq_tag=TEXT.filter(bool),
    duration=st.none() | st.floats(0, 1e6),
    enc_len=st.none() | st.integers(0, 10**6),
    ref=st.none() | TEXT,
    hyps=st.lists(HYP, min_size=1, max_size=4).map(lambda hyps: sorted(hyps, key=lambda hyp: -hyp.score)),
    error=st.none() | TEXT.filter(bool),
)


@settings(max_examples=100, deadline=None)
@given(utts=st.lists(UTT, max_size=4, unique_by=lambda utt: utt.seq_tag), compress=st.booleans())
def test_round_trip(tmp_path_factory, utts, compress):
    folder = tmp_path_factory.mktemp("nbest")
    filename = write(folder / ("nbest.jsonl.gz" if compress else "nbest.jsonl"), utts)
    assert load_nbest(filename) == (HEADER, utts)
    assert os.listdir(folder) == [os.path.basename(filename)]
    with open(filename, "rb") as file:
        assert (file.read(2) == b"\x1f\x8b") == compress


def test_one_line_per_utterance_of_strict_json(tmp_path):
    filename = write(tmp_path / "nbest.jsonl", [make_utt("dev/1", ref="a\u2028b\nc"), make_utt("dev/2")])
    with open(filename, encoding="utf8", newline="\n") as file:
        lines = [json.loads(line, parse_constant=pytest.fail) for line in file]
    assert len(lines) == 3
    assert lines[0]["nbest"] == 1 and lines[0]["scales"] == HEADER.scales
    assert set(lines[1]) == {"seq_tag", "duration", "enc_len", "ref", "hyps", "error"}
    assert load_nbest(filename)[1][0].ref == "a\u2028b\nc"


def test_compressed_files_are_the_same_when_made_again(tmp_path):
    (tmp_path / "x").mkdir()
    first = write(tmp_path / "nbest.jsonl.gz", [make_utt()])
    second = write(tmp_path / "x" / "other.jsonl.gz", [make_utt()])
    with open(first, "rb") as a, open(second, "rb") as b:
        assert a.read() == b.read()


def test_impossible_hypotheses_are_left_out(tmp_path):
    good = make_hyp([1], -1.0, -1.0, -1.0)
    absent = Hypothesis([], "", -math.inf, {"att": -math.inf, "ctc": math.nan, "ilm": 0.0})
    with NBestWriter(str(tmp_path / "n.jsonl"), HEADER) as writer:
        assert writer.write(make_utt("a/1", hyps=[good, absent])).hyps == [good]
        written = writer.write(make_utt("a/2", hyps=[absent]))
    assert written.hyps == [] and "no hypothesis" in written.error
    assert load_nbest(str(tmp_path / "n.jsonl"))[1][1] == written


@pytest.mark.parametrize(
    ("utt", "message"),
    [
        (make_utt(hyps=[Hypothesis([], "", math.nan, {"att": 0.0, "ctc": 0.0, "ilm": 0.0})]), "finite"),
        (make_utt(hyps=[Hypothesis([], "", math.inf, {"att": 0.0, "ctc": 0.0, "ilm": 0.0})]), "finite"),
        (make_utt(hyps=[Hypothesis([], "", 0.0, {"att": -math.inf, "ctc": 0.0, "ilm": 0.0})]), '"att"'),
        (make_utt(hyps=[Hypothesis([], "", 0.0, {"att": 0.0, "ctc": 0.0})]), 'no score "ilm"'),
        (make_utt(hyps=make_utt().hyps[::-1]), "best first"),
        (make_utt(duration=math.nan), "duration"),
        (make_utt(seq_tag=""), "seq_tag"),
        (make_utt(ref="\ud800"), "surrogates"),
        (make_utt(tag="test/0"), "written before"),
    ],
)
def test_writer_refuses(tmp_path, utt, message):
    filename = str(tmp_path / "n.jsonl")
    with pytest.raises(ValueError, match=message) as info:
        with NBestWriter(filename, HEADER) as writer:
            writer.write(make_utt("test/0"))
            writer.write(utt)
    assert filename in str(info.value) and repr(utt.seq_tag) in str(info.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["n.jsonl", "n.jsonl.gz"])
def test_nothing_has_the_final_name_before_the_end(tmp_path, name):
    write(tmp_path / name, [make_utt("old/1")])
    writer = NBestWriter(str(tmp_path / name), HEADER)
    writer.write(make_utt("new/1"))
    assert [utt.seq_tag for utt in load_nbest(str(tmp_path / name))[1]] == ["old/1"]
    writer.abort()
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(ValueError, match="closed"):
        writer.write(make_utt("new/2"))
    with pytest.raises(KeyboardInterrupt), NBestWriter(str(tmp_path / name), HEADER):
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), open_text_for_writing(str(tmp_path / "x.txt")) as file:
        file.write("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == [name]


def test_disk_full_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    writer = NBestWriter(str(tmp_path / "n.jsonl"), HEADER)

    def no_space(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        writer.close()
    assert os.listdir(tmp_path) == []


def good_lines():
    header = {"nbest": 1, "search": "ctc_greedy", "scales": {"ctc": 1.0}, "vocab": {"num_labels": 3}}
    hyp = {"labels": [1, 2], "text": "a", "score": -1.0, "scores": {"ctc": -1.0}}
    utt = {"seq_tag": "test/1", "duration": 1.0, "enc_len": 4, "ref": "a", "hyps": [hyp], "error": None}
    return header, utt


def dump(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def changed(where, key, value):
    """:return: file text with one field changed (value ...: removed)"""
    header, utt = good_lines()
    record = {"header": header, "utt": utt, "hyp": utt["hyps"][0]}[where]
    if value is ...:
        del record[key]
    else:
        record[key] = value
    return dump(header, utt)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "empty"),
        ("{'test/1': [(0.0, 'a')]}\n", 1, "not JSON"),
        ("[1]\n", 1, "not an n-best file"),
        (dump({"seq_tag": "a"}), 1, "not an n-best file"),
        (changed("header", "nbest", 2), 1, "not known"),
        (changed("header", "scales", ...), 1, '"scales" is missing'),
        (changed("header", "scales", {"ctc": "1"}), 1, "expected a number"),
        (changed("header", "search", 3), 1, '"search"'),
        (changed("header", "length_norm_exponent", True), 1, "length_norm_exponent"),
        (changed("header", "length_norm_offset", 2), 1, "expected 0 or 1"),
        (changed("header", "vocab", {"num_labels": "3"}), 1, "num_labels"),
        (dump(*good_lines(), good_lines()[1]), 3, "was there before, in line 2"),
        (dump(*good_lines()) + "\n", 3, "not JSON"),
        (dump(*good_lines())[:-20], 2, "cut off"),
        (dump(*good_lines())[:-1], 2, "cut off"),
        (dump(good_lines()[0], [1]), 2, "expected an object"),
        (changed("utt", "seq_tag", ...), 2, '"seq_tag" is missing'),
        (changed("utt", "duration", -1), 2, "duration"),
        (changed("utt", "enc_len", 1.5), 2, "enc_len"),
        (changed("utt", "ref", 5), 2, '"ref"'),
        (changed("utt", "hyps", ...), 2, '"hyps" is missing'),
        (changed("utt", "hyps", []), 2, "neither a hypothesis nor an error"),
        (changed("utt", "hyps", ["a"]), 2, "hypothesis 1"),
        (changed("utt", "error", 1), 2, '"error"'),
        (changed("hyp", "labels", [3]), 2, "not a label (0 ... 2)"),
        (changed("hyp", "labels", [-1]), 2, "not a label"),
        (changed("hyp", "labels", [1.0]), 2, "not a label"),
        (changed("hyp", "labels", [True]), 2, "not a label"),
        (changed("hyp", "text", None), 2, '"text"'),
        (changed("hyp", "score", math.nan), 2, "NaN is not JSON"),
        (changed("hyp", "score", -math.inf), 2, "-Infinity is not JSON"),
        (changed("hyp", "score", None), 2, "expected a number"),
        (changed("hyp", "score", 10**400), 2, "finite"),
        (changed("hyp", "scores", {}), 2, 'no score "ctc"'),
        (changed("hyp", "scores", {"ctc": -1.0, "lm": -1.0}), 2, '"lm" has no scale'),
        (dump(good_lines()[0])[:-1] + "[" * 100_000 + "\n", 1, "not JSON"),
    ],
)
def test_malformed_file_is_refused_with_its_line(tmp_path, text, line, message):
    filename = tmp_path / "n.jsonl"
    filename.write_text(text, encoding="utf8")
    with pytest.raises(NBestFormatError) as info:
        load_nbest(str(filename))
    assert str(info.value).startswith(f"{filename}, line {line}")
    assert message in str(info.value)


def test_good_lines_are_good(tmp_path):
    (tmp_path / "n.jsonl").write_text(dump(*good_lines()), encoding="utf8")
    header, utts = load_nbest(str(tmp_path / "n.jsonl"))
    assert header == NBestHeader("ctc_greedy", {"ctc": 1.0}, vocab={"num_labels": 3})
    assert utts[0].hyps == [Hypothesis([1, 2], "a", -1.0, {"ctc": -1.0})]


def test_broken_gzip_and_encoding(tmp_path):
    filename = tmp_path / "n.jsonl.gz"
    filename.write_bytes(dump(*good_lines()).encode("utf8"))
    with pytest.raises(NBestFormatError, match=r"n\.jsonl\.gz: not a complete gzip"):
        load_nbest(str(filename))
    filename.write_bytes(gzip.compress(dump(*good_lines()).encode("utf8"))[:-12])
    with pytest.raises(NBestFormatError, match=r"n\.jsonl\.gz: not a complete gzip"):
        load_nbest(str(filename))
    (tmp_path / "n.jsonl").write_bytes(dump(good_lines()[0]).encode("utf8") + b"\xff\n")
    with pytest.raises(NBestFormatError, match=r"n\.jsonl: not UTF-8"):
        load_nbest(str(tmp_path / "n.jsonl"))
    with pytest.raises(FileNotFoundError):
        read_nbest(str(tmp_path / "missing.jsonl"))


def test_reading_is_a_stream(tmp_path):
    filename = tmp_path / "n.jsonl"
    filename.write_text(dump(*good_lines()) + "broken\n", encoding="utf8")
    header, utts = read_nbest(str(filename))
    assert header.search == "ctc_greedy"
    assert next(utts).seq_tag == "test/1"
    with pytest.raises(NBestFormatError, match="line 3"):
        next(utts)


def test_total_score_golden():
    hyp = Hypothesis([5, 6, 7], "x", 0.0, {"att": -1.0, "ctc": -2.0, "ilm": -3.0})
    scales = {"att": 0.5, "ctc": 0.25, "ilm": -0.1, "lm": 0.0}
    assert total_score(hyp, NBestHeader("x", scales)) == pytest.approx(-0.5 - 0.5 + 0.3)
    assert total_score(hyp, NBestHeader("x", scales, 1.0)) == pytest.approx(-0.7 / 4)
    assert total_score(hyp, NBestHeader("x", scales, 0.5)) == pytest.approx(-0.7 / 2)
    assert total_score(hyp, NBestHeader("x", scales, 1.0, length_norm_offset=0)) == pytest.approx(-0.7 / 3)
    empty = Hypothesis([], "", 0.0, hyp.scores)
    assert total_score(empty, NBestHeader("x", scales, 1.0, length_norm_offset=0)) == pytest.approx(-0.7)
    with pytest.raises(ValueError, match="'lm'"):
        total_score(hyp, NBestHeader("x", {**scales, "lm": 0.4}))


def test_audit_finds_wrong_totals(tmp_path):
    assert audit(HEADER, [make_utt()]) == []
    wrong_sign = NBestHeader(HEADER.search, {**HEADER.scales, "ilm": 0.2}, HEADER.length_norm_exponent)
    assert len(audit(wrong_sign, [make_utt()])) == 2
    no_norm = NBestHeader(HEADER.search, HEADER.scales, 0.0)
    (problem,) = audit(no_norm, [make_utt()])  # the empty hypothesis has the divisor 1 in any case
    assert problem.startswith("test/1, hypothesis 1: the score is -0.23")


def test_returnn_search_output(tmp_path):
    filename = str(tmp_path / "search_out.py")
    failed = make_utt("test/2", hyps=[], error="out of memory")
    write_returnn_search_output(filename, [make_utt("test/\"1'", hyps=make_utt().hyps), failed])
    with open(filename, encoding="utf8") as file:
        content = ast.literal_eval(file.read())
    assert content["test/\"1'"] == [(hyp.score, hyp.text) for hyp in make_utt().hyps]
    assert content["test/2"] == [(-math.inf, "")]
    write_returnn_search_output(filename + ".gz", [make_utt()])
    with gzip.open(filename + ".gz", "rt", encoding="utf8") as file:
        assert list(ast.literal_eval(file.read())) == ["test/1"]


def test_part():
    assert make_utt("dev-other/19-198/0001").part == "dev-other"
    assert make_utt("utt1").part == ""
