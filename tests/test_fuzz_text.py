"""Property-based tests of everything that reads or writes texts and JSON: whatever comes, it is right or refused."""

from __future__ import annotations

import ast
import gzip
import json
import math
import os
import re
from argparse import ArgumentTypeError
from dataclasses import asdict, fields
from typing import Literal

import pytest
import torch
from fuzz import FUZZ, any_text, damaged, damaged_json, dump, words
from hypothesis import example, given
from hypothesis import strategies as st
from tool_runs import call_tool

from configs.base.options import OptionError, parse_value, resolve_options
from configs.base.published import RESULTS_DIR, ResultError, load_results
from recog.learning_rates import LearningRatesError, read_learning_rates
from recog.nbest import (
    Hypothesis,
    NBestFormatError,
    NBestHeader,
    NBestWriter,
    Utterance,
    audit,
    load_nbest,
    total_score,
    write_returnn_search_output,
)
from recog.options import CtcOptions, LabelSyncOptions
from recog.prior import load_log_prior, save_log_prior
from recog.text import DEFAULT_NORMALISER
from recog.vocab import load_vocab
from recog.wer import score_utterances
from rf_models.checkpoint import ModelInfo
from tools.cli import printable, split_overrides
from tools.corpus.package import CorpusError
from tools.corpus.tedlium2 import clean_text, parse_stm, with_padding
from tools.corpus.vocabulary import import_bpe
from tools.rescore import _named_file, _scales
from tools.transcription.formats import ctm_lines, file_record, recording_names, srt_text
from tools.transcription.recognise import Segment, Word


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ---- n-best files

finite = st.floats(-1e6, 1e6).map(float)
component_names = st.lists(any_text, min_size=1, max_size=3, unique=True)


@st.composite
def nbest_files(draw: st.DrawFn) -> tuple[NBestHeader, list[Utterance]]:
    names = draw(component_names)
    header = NBestHeader(
        search=draw(any_text),
        scales={name: draw(finite) for name in names},
        length_norm_exponent=draw(st.sampled_from([0.0, 1.0, 0.7])),
        length_norm_offset=draw(st.sampled_from([0, 1])),
        options={"text": draw(any_text), "tuple": [1, None]},
        vocab={"num_labels": 9},
    )
    utterances = []
    for tag in draw(st.lists(any_text.filter(bool), max_size=4, unique=True)):
        hyps = []
        for score_ in sorted(draw(st.lists(finite, max_size=3)), reverse=True):
            labels = draw(st.lists(st.integers(0, 8), max_size=5))
            hyps.append(Hypothesis(labels, draw(any_text), score_, {name: draw(finite) for name in names}))
        utterances.append(
            Utterance(
                tag,
                draw(st.one_of(st.none(), st.floats(0, 1e5))),
                draw(st.one_of(st.none(), st.integers(0, 10**6))),
                draw(st.one_of(st.none(), any_text)),
                hyps,
                draw(st.one_of(st.none(), any_text.filter(bool))) if hyps else "an error",
            )
        )
    return header, utterances


def write_nbest(filename, header, utterances):
    with NBestWriter(filename, header) as writer:
        for utt in utterances:
            writer.write(utt)


@FUZZ
@given(content=nbest_files(), compressed=st.booleans())
def test_nbest_round_trip(folder, content, compressed):
    filename = str(folder / ("trip.jsonl.gz" if compressed else "trip.jsonl"))
    write_nbest(filename, *content)
    assert load_nbest(filename) == content


@FUZZ
@given(content=nbest_files())
def test_returnn_search_output(folder, content):
    _, utterances = content
    filename = str(folder / "search_out.py")
    write_returnn_search_output(filename, utterances)
    with open(filename, encoding="utf8") as file:
        text = file.read()
    expected = {utt.seq_tag: [(hyp.score, hyp.text) for hyp in utt.hyps] or [(-math.inf, "")] for utt in utterances}
    assert ast.literal_eval(text) == expected
    assert text.count("\n") == 2 + sum(2 + max(len(utt.hyps), 1) for utt in utterances)  # an entry is a line


HEADER = {"nbest": 1, "search": "x", "scales": {"att": 0.7, "ctc": 0.3}, "length_norm_exponent": 1.0, "vocab": {}}
UTTERANCES = [
    {"seq_tag": "dev/1", "duration": 1.5, "enc_len": 7, "ref": "a b", "error": None}
    | {"hyps": [{"labels": [1, 2], "text": "a b", "score": -0.5, "scores": {"att": -1.0, "ctc": -2.0}}]},
    {"seq_tag": "dev/2", "duration": None, "enc_len": None, "ref": None, "hyps": [], "error": "none"},
]


def check_nbest(filename):
    """Either an error that says where, or something that all tools can work with."""
    try:
        header, utterances = load_nbest(filename)
    except NBestFormatError as exc:
        assert str(exc).startswith(filename) and (
            re.match(r", line \d+", str(exc)[len(filename) :]) or ".gz" in filename or "UTF-8" in str(exc)
        )
        return
    audit(header, utterances)
    score_utterances(utterances)
    write_nbest(filename + ".again.jsonl", header, [utt for utt in utterances])
    assert load_nbest(filename + ".again.jsonl") == (header, utterances)


@FUZZ
@given(header=st.one_of(st.just(HEADER), damaged_json(HEADER)), utterances=damaged_json(UTTERANCES))
@example(header={**HEADER, "length_norm_exponent": 1e308}, utterances=UTTERANCES)
@example(header={**HEADER, "length_norm_exponent": -1e308}, utterances=UTTERANCES)
@example(header={**HEADER, "scales": {"att": 1e308, "ctc": -1e308}}, utterances=UTTERANCES)
@example(header={**HEADER, "options": {"x": "\ud800"}}, utterances=UTTERANCES)
@example(header={**HEADER, "options": {"x": float("inf")}}, utterances=UTTERANCES)
def test_nbest_with_other_values(folder, header, utterances):
    filename = str(folder / "values.jsonl")
    with open(filename, "wb") as file:
        file.writelines(
            dump(record) + b"\n" for record in [header, *(utterances if isinstance(utterances, list) else [utterances])]
        )
    check_nbest(filename)


RAW_NBEST = b"".join(dump(record) + b"\n" for record in (HEADER, *UTTERANCES))


@FUZZ
@given(
    content=damaged(RAW_NBEST, tokens=(b'"hyps": ', b"\\ud800", b'"nbest": 1')),
    compressed=st.booleans(),
    data=st.data(),
)
def test_nbest_with_other_bytes(folder, content, compressed, data):
    filename = str(folder / ("bytes.jsonl.gz" if compressed else "bytes.jsonl"))
    if compressed:
        content = data.draw(damaged(gzip.compress(RAW_NBEST, mtime=0)))
    with open(filename, "wb") as file:
        file.write(content)
    check_nbest(filename)


@FUZZ
@given(content=damaged(RAW_NBEST))
def test_score_tool_with_other_bytes(folder, content):
    (folder / "tool.jsonl").write_bytes(content)
    res = call_tool("score", "tool.jsonl", "--alignments", "a.txt", "--json", "s.json", "--trn", "trn", cwd=folder)
    assert res.returncode in (0, 1)
    assert res.returncode == 0 or res.stderr.startswith("error: ") or "error: no utterance" in res.stderr


@FUZZ
@given(scales=st.dictionaries(any_text, finite, max_size=3), labels=st.integers(0, 5), data=st.data())
def test_total_score(scales, labels, data):
    scores = {name: data.draw(st.floats(allow_nan=False, allow_infinity=False)) for name in scales}
    header = NBestHeader("x", scales, length_norm_exponent=data.draw(st.sampled_from([0.0, 1.0, -1.0])))
    total = total_score(Hypothesis([0] * labels, "", 0.0, scores), header)
    expected = sum(scales[name] * scores[name] for name in scales) / (labels + 1) ** header.length_norm_exponent
    if math.isfinite(expected) and all(abs(scales[name] * scores[name]) < 1e200 for name in scales):
        size = sum(abs(scales[name] * scores[name]) for name in scales)
        assert total == pytest.approx(expected, rel=1e-9, abs=1e-9 * size * (labels + 1))


# ---- files for sclite, subtitles


@FUZZ
@given(content=nbest_files())
def test_files_for_sclite(folder, content):
    """Read as sclite does: fields between white space, the name in the last parentheses, comments."""
    header, utterances = content
    utterances = [Utterance(u.seq_tag, u.duration or 1.0, u.enc_len, u.ref, u.hyps, u.error) for u in utterances]
    filename = str(folder / "sclite.jsonl")
    write_nbest(filename, header, utterances)
    for file in list((folder / "sclite").glob("*")) if (folder / "sclite").is_dir() else []:
        file.unlink()
    res = call_tool("score", filename, "--trn", folder / "sclite", "--stm", "x.stm", "--ctm", "x.ctm", cwd=folder)
    if not utterances:
        assert res.returncode == 1 and "no utterances" in res.stderr
        return
    with_ref = sorted((u for u in utterances if u.ref is not None), key=lambda u: u.seq_tag)
    stm = [line.split(" ") for line in read_lines(folder / "x.stm") if not line.startswith(";;")]
    assert [line[5:] or [""] for line in stm] == [DEFAULT_NORMALISER(u.ref).split(" ") for u in with_ref]
    assert all(
        line[1] == "1" and float(line[4]) == pytest.approx(max(u.duration, 0.01), abs=1e-3)
        for line, u in zip(stm, with_ref, strict=True)
    )
    ctm = [line.split(" ") for line in read_lines(folder / "x.ctm") if not line.startswith(";;")]
    assert all(len(line) == 5 for line in ctm)
    hyps = [DEFAULT_NORMALISER.words(u.hyps[0].text) if u.hyps else [] for u in with_ref]
    assert [line[4] for line in ctm] == [word for words_ in hyps for word in words_]
    assert {line[0] for line in ctm} <= {line[0] for line in stm}
    for kind, texts in (("ref", [DEFAULT_NORMALISER.words(u.ref) for u in with_ref]), ("hyp", hyps)):
        lines = [line for file in sorted((folder / "sclite").glob(f"*.{kind}.trn")) for line in read_lines(file)]
        found = [re.fullmatch(r"(.*) \(([^\s()]+)\)", line, re.DOTALL) for line in lines]
        assert all(found) and sorted(match[1].split() for match in found) == sorted(texts)


def read_lines(file) -> list[str]:
    """:return: lines that end with a line feed, and with nothing else"""
    content = file.read_text(encoding="utf8")
    assert not content or content.endswith("\n")
    return content.split("\n")[:-1]


@st.composite
def transcripts(draw: st.DrawFn) -> list[Segment]:
    segments, time = [], 0.0
    for texts in draw(st.lists(words, max_size=4)):
        end = time + draw(st.floats(0.1, 5000))
        spoken = []
        for i, text in enumerate(texts):
            begin = time + (end - time) * i / len(texts)
            times = (begin, begin + 0.01) if draw(st.booleans()) else (None, None)
            spoken.append(Word(text, *times))
        score_ = draw(st.one_of(st.none(), finite))
        segments.append(Segment(time, end, " ".join(texts), score_, spoken))
        time = end
    return segments


@FUZZ
@given(segments=transcripts(), name=any_text)
def test_transcripts(segments, name):
    record = json.loads(json.dumps(file_record(name, 3.0, segments), allow_nan=False))
    assert [s["text"] for s in record["segments"]] == [s.text for s in segments]
    spoken = [word.text for segment in segments for word in segment.words]
    (recording,) = recording_names([name])
    lines = ctm_lines(recording, segments)
    fields_ = [line.split() for line in lines]
    assert all(len(line) == 5 and float(line[2]) >= 0 and float(line[3]) > 0 for line in fields_)
    assert [line[4] for line in fields_] == spoken
    captions = parse_srt(srt_text(segments))
    assert " ".join(text for _, _, text in captions).split() == [word.replace("-->", "→") for word in spoken]
    assert all(begin < end for begin, end, _ in captions)
    begins = [begin for begin, _, _ in captions]
    assert begins == sorted(begins)


def parse_srt(text: str) -> list[tuple[int, int, str]]:
    """:return: begin, end in milliseconds, text of each caption; as players read it"""
    captions = []
    for number, block in enumerate(text.split("\n\n") if text else [], 1):
        first, times, *lines = block.strip("\n").split("\n")
        assert int(first) == number and 1 <= len(lines) <= 2
        match = re.fullmatch(r"(\d\d+):(\d\d):(\d\d),(\d{3}) --> (\d\d+):(\d\d):(\d\d),(\d{3})", times)
        assert match and not any("-->" in line for line in lines)
        h, m, s, ms, h2, m2, s2, ms2 = map(int, match.groups())
        captions.append((((h * 60 + m) * 60 + s) * 1000 + ms, ((h2 * 60 + m2) * 60 + s2) * 1000 + ms2, " ".join(lines)))
    return captions


# ---- TED-LIUM's segments


@FUZZ
@given(
    segments=st.lists(st.tuples(st.floats(0, 1e4), st.floats(0.01, 100), words), max_size=5),
    talk=words.map("_".join).filter(lambda name: name and not name.startswith(";;")),
)
def test_stm_round_trip(segments, talk):
    lines = [
        f"{talk} 1 speaker {start:.2f} {start + length:.2f} <o,f0,male> {' '.join(texts)}"
        for start, length, texts in segments
        if round(start, 2) < round(start + length, 2)
    ]
    lines = [line for line in lines if "ignore_time_segment" not in line]
    got = parse_stm("\n".join(lines))
    expected = sorted(
        (float(line.split(" ")[3]), float(line.split(" ")[4]), " ".join(line.split(" ")[6:])) for line in lines
    )
    assert sorted((s.start, s.end, s.text) for s in got) == expected
    for segment, start, end in with_padding(got, (0.15, 0.1)):
        assert start <= segment.start < segment.end <= end


STM = b";; comment\nTalk 1 Talk 0.00 1.50 <o,f0,male> a b <unk>\nTalk 1 Talk 2.00 3.50 <o,f0,male> it 's (2)\n"


@FUZZ
@given(content=damaged(STM, tokens=(b" nan ", b" inf ", b" -1 ", b"<o,", b"\xe2\x80\xa8")))
def test_stm_with_other_bytes(content):
    text = content.decode("utf8", "replace")
    try:
        segments = parse_stm(text)
    except ValueError as exc:
        assert re.match(r"line \d+: ", str(exc))
        return
    for segment in segments:
        assert 0 <= segment.start < segment.end < math.inf and segment.name
        cleaned = clean_text(segment.text)
        assert cleaned == " ".join(cleaned.split())


@FUZZ
@given(text=any_text, contractions=st.sampled_from(["joined", "split"]))
def test_texts_are_words(text, contractions):
    for made in (clean_text(text, contractions), DEFAULT_NORMALISER(text)):
        assert made == " ".join(made.split())
    assert DEFAULT_NORMALISER(DEFAULT_NORMALISER(text)) == DEFAULT_NORMALISER(text)
    shown = printable(text)
    assert printable(shown) == shown and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


# ---- priors


@FUZZ
@given(values=st.lists(st.floats(-50, 5), min_size=1, max_size=8))
def test_prior_round_trip(folder, values):
    prior = torch.tensor(values, dtype=torch.float64).log_softmax(0)
    save_log_prior(str(folder / "p.txt"), prior)
    torch.testing.assert_close(load_log_prior(str(folder / "p.txt"), num_classes=len(values)), prior)


PRIOR = b"# ctc-prior domain=log num_classes=2\n-0.6931471805599453\n-0.6931471805599453\n"


@FUZZ
@given(content=damaged(PRIOR, tokens=(b"linear", b"nan", b"inf", b"-inf", b"1_0", b"num_classes=")))
def test_prior_with_other_bytes(folder, content):
    filename = str(folder / "q.txt")
    with open(filename, "wb") as file:
        file.write(content)
    try:
        prior = load_log_prior(filename, num_classes=2)
    except ValueError as exc:
        assert str(exc).startswith(filename)
        return
    assert prior.shape == (2,) and prior.logsumexp(0).abs() < 1e-9 and not prior.isnan().any()


# ---- vocabularies

VOCAB = {"type": "bpe", "num_labels": 5, "eos_index": 0, "files": {"codes": "v.codes", "vocab": "v.vocab"}}
CODES = b"#version: 0.2\na b</w>\nab c</w>\n"
LABELS = b"<s>\n<unk>\na@@\nb\nab\n"
DICT = b"{'<s>': 0, '<unk>': 1, 'a@@': 2, 'b': 3, 'ab': 4}"


@FUZZ
@given(
    description=st.one_of(st.just(VOCAB), damaged_json(VOCAB)),
    codes=st.one_of(st.just(CODES), damaged(CODES)),
    labels=st.one_of(st.just(LABELS), st.just(DICT), damaged(LABELS, (b"{",)), damaged(DICT, (b"**{}", b"1or 2"))),
)
def test_vocabulary(folder, description, codes, labels):
    from returnn.datasets.util.vocabulary import Vocabulary
    from returnn.util.bpe import StandardBytePairEncoder

    Vocabulary._cache.clear()
    StandardBytePairEncoder._file_cache.clear()
    for name, content in {"v.json": dump(description), "v.codes": codes, "v.vocab": labels}.items():
        (folder / name).write_bytes(content)
    filename = str(folder / "v.json")
    try:
        vocab = load_vocab(filename)
    except (ValueError, OSError) as exc:
        assert str(folder) in str(exc)
    else:
        try:
            assert vocab.labels_to_text(vocab.text_to_labels("ab")) in ("ab", "a b")
        except ValueError as exc:
            assert str(exc).startswith("vocabulary v:")
    try:
        entry = import_bpe(str(folder / "imported"), "x", str(folder / "v.codes"), str(folder / "v.vocab"))
    except CorpusError as exc:
        assert "v.codes" in str(exc) or "v.vocab" in str(exc)
    else:
        assert load_vocab(str(folder / "imported" / "x.json")).num_labels == entry["num_labels"]


# ---- options


@FUZZ
@given(
    text=st.one_of(any_text, st.sampled_from(["1", "-1", "0.5", "True", "none", "1,2", "(1, 2)", "a,b", "x"])),
    annotation=st.sampled_from(
        [
            bool,
            int,
            float,
            str,
            int | None,
            float | None,
            tuple[int, ...],
            tuple[float, float],
            Literal["x", "y"],
            tuple[str, ...],
        ]
    ),
)
def test_option_values(text, annotation):
    try:
        value = parse_value(text, annotation, name="option")
    except ValueError as exc:
        assert str(exc).startswith("option = ")
        return
    kinds = {bool: bool, int: int, float: float, str: str}
    if annotation in kinds:
        assert type(value) is kinds[annotation]
    elif value is not None:
        assert isinstance(value, (int, float, tuple, str))


@FUZZ
@given(
    options=st.dictionaries(
        st.one_of(any_text, st.sampled_from([f.name for f in fields(LabelSyncOptions)])), any_text, max_size=3
    )
)
def test_command_line(options):
    try:
        groups, others = resolve_options({}, options, [LabelSyncOptions(), CtcOptions()])
    except OptionError as exc:
        assert str(exc).startswith("error: command line: ") or "error: " in str(exc)
        return
    assert set(groups) == {LabelSyncOptions, CtcOptions}
    assert set(others) | {f.name for f in fields(LabelSyncOptions)} | {f.name for f in fields(CtcOptions)} >= set(
        options
    )


@FUZZ
@given(argv=st.lists(st.one_of(any_text, st.just("++beam_size")), max_size=6))
def test_words_of_a_tool(argv):
    own, rest = split_overrides(argv)
    assert own + rest == argv and not any(word.startswith("++") for word in own)
    assert not rest or rest[0].startswith("++")


@FUZZ
@given(
    text=st.one_of(
        any_text, st.lists(st.tuples(any_text, any_text), max_size=3).map(lambda p: ",".join(f"{a}={b}" for a, b in p))
    )
)
def test_scales_of_rescore(text):
    for parse in (_scales, _named_file):
        try:
            value = parse(text)
        except ArgumentTypeError:
            continue
        if parse is _scales:
            assert value and all(name and math.isfinite(scale) for name, scale in value.items())


# ---- results, learning rates, descriptions of models


@FUZZ
@given(data=st.data())
def test_published_results(folder, data):
    place = folder / "results"
    place.mkdir(exist_ok=True)
    with open(os.path.join(RESULTS_DIR, "ted2_models.jsonl"), "rb") as file:
        (place / "ted2_models.jsonl").write_bytes(file.read())
    with open(os.path.join(RESULTS_DIR, "ted2_scales.jsonl"), "rb") as file:
        lines = file.read().splitlines(keepends=True)[:4]
    if data.draw(st.booleans()):
        lines[1] = dump(data.draw(damaged_json(json.loads(lines[1])))) + b"\n"
        content = b"".join(lines)
    else:
        content = data.draw(damaged(b"".join(lines)))
    (place / "ted2_scales.jsonl").write_bytes(content)
    try:
        rows = load_results(str(place))
    except ResultError as exc:
        assert "ted2_scales.jsonl" in str(exc)
        return
    for row in rows:
        json.dumps(row.as_dict(), allow_nan=False)


RATES = b"""{
1: EpochData(learningRate=1e-05, error={
'dev_loss_ce': 1.5,
'train_loss_ce': float('nan'),
':meta:device': 'cpu',
}),
2: EpochData(learningRate=np.float64(0.1), error={'dev_loss_ce': -float('inf')}),
}
"""


@FUZZ
@given(content=damaged(RATES, tokens=(b"__import__('os').abort()", b"float(", b"**", b"EpochData(", b"nan")))
def test_learning_rates(folder, content):
    filename = str(folder / "learning_rates")
    with open(filename, "wb") as file:
        file.write(content)
    try:
        epochs = read_learning_rates(filename)
    except LearningRatesError as exc:
        assert str(exc).startswith(filename)
        return
    assert all(type(number) is int and "learning_rate" in values for number, values in epochs.items())


@FUZZ
@given(epochs=st.dictionaries(st.integers(1, 99), st.dictionaries(any_text, st.floats(), max_size=3), max_size=3))
def test_learning_rates_as_returnn_writes_them(folder, epochs):
    from returnn.learning_rate_control import LearningRateControl
    from returnn.util.basic import better_repr

    data = {
        number: LearningRateControl.EpochData(learning_rate=0.1, error=error, meta={})
        for number, error in epochs.items()
    }
    (folder / "written").write_text(better_repr(data) + "\n", encoding="utf8")
    found = read_learning_rates(str(folder / "written"))
    assert repr(found) == repr({n: {**dict(sorted(epochs[n].items())), "learning_rate": 0.1} for n in sorted(epochs)})


INFO = {"kind": "lstm_lm", "options": {"num_layers": 1, "embed_dim": 4, "lstm_dim": 4}, "num_labels": 9, "eos_index": 0}


@FUZZ
@given(content=damaged_json(INFO))
@example(content={**INFO, "kind": "aed_ctc", "options": {"enc_num_heads": 0}})
@example(content={**INFO, "options": {"dropout": None}})
def test_description_of_a_model(content):
    try:
        info = ModelInfo(**content)
        info.model_options()
    except (TypeError, ValueError, ArithmeticError):  # what read_model_info makes one error of
        return
    assert info.num_labels >= 1
    assert asdict(info)["options"] is not None
