"""Property-based tests of everything that reads binary files, archives, manifests and records of other runs."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile

import numpy
import pytest
import soundfile
import torch
from convert_bundle_writer import HEADER, block, entry, message, table, varint
from corpora import make_librispeech, noise, write_sphere
from fuzz import FUZZ, any_json, any_text, damaged, damaged_json, dump
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.base.corpus import CorpusOptions, open_corpus
from configs.base.options import OptionError
from configs.base.perplexity import read_sentences
from configs.base.published import ResultError
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance
from recog.prepared_corpus import ListedUtterance, PreparedCorpusError, format_listing, iter_listing
from recog.vocab import load_vocab
from rf_models.checkpoint import load_state_dict, read_model_info
from tools.corpus.audio import AudioError, audio_problem, read_audio
from tools.corpus.librispeech import chapters_of_tar, make_items
from tools.corpus.lm_text import write_lm_text
from tools.corpus.package import CorpusError, Manifest
from tools.prepare_librispeech import main as prepare_librispeech
from tools.reporting.inputs import load_inputs
from tools.reporting.page import render
from tools.result_data.finished_run import read_run, result_of_run
from tools.tf_conversion.bundle import BundleError, BundleReader

FEW = settings(FUZZ, max_examples=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ---- TensorFlow checkpoints: with right CRCs, so that what is behind them is reached

keys = st.lists(st.one_of(st.binary(max_size=6), any_text.map(str.encode)), max_size=5, unique=True)
dtypes = st.sampled_from([0, 1, 3, 7, 9, 14, 19, 99])
sizes = st.sampled_from([0, 1, 2, 3, 8, 100, 2**31, 2**62, 2**63, 2**64 - 1])


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(st.binary(max_size=20))
    shape = draw(st.lists(sizes, max_size=3))
    described = entry(
        dtype=draw(dtypes),
        shape=shape,
        shard=draw(sizes),
        offset=draw(sizes),
        size=draw(sizes),
        crc=draw(st.integers(0, 2**32 - 1)),
    )
    return draw(st.one_of(st.just(described), damaged(described)))


def read_everything(prefix) -> None:
    reader = BundleReader(str(prefix))
    for name in reader.entries:
        try:
            value = reader.read(name)
        except BundleError:
            continue
        assert value.size == reader.entries[name].num_values <= 100


@FUZZ
@given(items=st.dictionaries(st.binary(max_size=6), entries(), max_size=4), per_block=st.integers(1, 5))
def test_bundle_with_other_entries(folder, items, per_block):
    (folder / "m.index").write_bytes(table([(b"", HEADER), *items.items()], items_per_block=per_block))
    (folder / "m.data-00000-of-00001").write_bytes(bytes(100))
    try:
        read_everything(folder / "m")
    except BundleError as exc:
        assert "m.index" in str(exc)


@FUZZ
@given(
    body=st.one_of(st.binary(max_size=60), damaged(block([(b"", HEADER), (b"x", b"\x08\x01")])[:-9])),
    restarts=st.integers(0, 2**32 - 1),
)
def test_bundle_with_other_blocks(folder, body, restarts):
    """A data block of any bytes, with a right CRC."""
    from convert_bundle_writer import mask_crc
    from google_crc32c import value as crc32c

    raw = body + struct.pack("<I", restarts) + b"\0"
    raw += struct.pack("<I", mask_crc(crc32c(raw)))
    data, handles = raw, b""
    for other in (block([]), block([(b"\xff", varint(0) + varint(len(raw) - 5))], restart_interval=1)):
        handles += varint(len(data)) + varint(len(other) - 5)
        data += other
    (folder / "b.index").write_bytes(data + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))
    try:
        read_everything(folder / "b")
    except BundleError as exc:
        assert "b.index" in str(exc)


def raw_block(items: bytes) -> bytes:
    """:return: a block of these bytes with a right CRC"""
    from convert_bundle_writer import mask_crc
    from google_crc32c import value as crc32c

    raw = items + struct.pack("<II", 0, 1) + b"\0"
    return raw + struct.pack("<I", mask_crc(crc32c(raw)))


@pytest.mark.parametrize("where", ["data", "meta"])
def test_bundle_whose_names_grow(tmp_path, where):
    """A name of 1 MiB, and 100,000 that share it with 5 bytes each: 100 GiB, if somebody unfolded them."""
    first = varint(0) + varint(2**20) + varint(0) + b"a" * 2**20
    more = b"".join(varint(2**20) + varint(3) + varint(0) + i.to_bytes(3, "big") for i in range(100_000))
    items = varint(0) + varint(0) + varint(len(HEADER)) + HEADER + first + more
    data_block, meta_block = (
        (raw_block(items), block([]))
        if where == "data"
        else (raw_block(b"\0\0" + varint(len(HEADER)) + HEADER), raw_block(first + more))
    )
    data, handles = data_block, b""
    for other in (meta_block, block([(b"\xff", varint(0) + varint(len(data_block) - 5))], restart_interval=1)):
        handles += varint(len(data)) + varint(len(other) - 5)
        data += other
    (tmp_path / "m.index").write_bytes(data + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(BundleError, match="more names than any model"):
        BundleReader(str(tmp_path / "m"))
    assert tracemalloc.get_traced_memory()[1] < 300 * 2**20 and time.process_time() - begin < 10
    tracemalloc.stop()


def test_bundle_with_many_dimensions(tmp_path):
    """Their product would be a number of millions of digits."""
    dims = b"".join(message((2, message((1, 2**62)))) for _ in range(300))
    for shape in (message((2, dims)), message((2, dims[: len(dims) // 3])) * 3):
        (tmp_path / "m.index").write_bytes(table([(b"", HEADER), (b"x", message((1, 1)) + shape)]))
        with pytest.raises(BundleError, match="more than 254 dimensions"):
            BundleReader(str(tmp_path / "m"))


# ---- checkpoints of PyTorch


@pytest.fixture(scope="module")
def checkpoint():
    """:return: content of a small one"""
    stream = io.BytesIO()
    info = {
        "kind": "lstm_lm",
        "options": {"num_layers": 1, "embed_dim": 4, "lstm_dim": 4},
        "num_labels": 9,
        "eos_index": 0,
    }
    torch.save({"model": {"a.b": torch.zeros(3), "c": torch.ones(2, 2)}, "epoch": 1, "model_info": info}, stream)
    return stream.getvalue()


@FUZZ
@given(data=st.data())
def test_checkpoint_with_other_bytes(folder, checkpoint, data):
    filename = str(folder / "x.pt")
    with open(filename, "wb") as file:
        file.write(data.draw(damaged(checkpoint, tokens=(b"cos\nsystem\n(S'false'\ntR.", b"c__builtin__\neval\n"))))
    for read in (load_state_dict, read_model_info):
        try:
            read(filename)
        except ValueError as exc:
            assert filename in str(exc)


# ---- audio


@pytest.fixture(scope="module")
def audio_files(folder):
    """:return: content of the same noise in several formats"""
    samples = noise(0.2, seed=1)
    files = {}
    for name, options in {"flac": {}, "wav": {}, "ogg": {"subtype": "VORBIS"}}.items():
        stream = io.BytesIO()
        soundfile.write(stream, samples, 16_000, format=name.upper(), **options)
        files[name] = stream.getvalue()
    write_sphere(str(folder / "x.sph"), samples)
    files["sph"] = (folder / "x.sph").read_bytes()
    return files


@FUZZ
@given(data=st.data(), kind=st.sampled_from(["flac", "wav", "ogg", "sph"]))
def test_audio_with_other_bytes(folder, audio_files, data, kind):
    tokens = (
        b"sample_count -i 99999999999",
        b"channel_count -i 0",
        b"channel_count -i 1024",
        b"sample_rate -i -1",
        b"\xff\xff\xff\xff",
    )
    whole = audio_files[kind]
    content = data.draw(damaged(whole[:300], tokens)) + whole[300:]  # the headers are there
    (folder / "y").write_bytes(content)
    for source in (content, str(folder / "y")):
        try:
            samples, rate = read_audio(source)
        except AudioError as exc:
            assert str(exc)
            continue
        assert samples.size <= 2**20 + 2000 * len(content)
        problem = audio_problem(samples, rate)
        assert problem is None or isinstance(problem, str)
        assert problem is not None or (numpy.isfinite(samples).all() and rate == 16_000)


# ---- archives


@pytest.fixture(scope="module")
def source(folder):
    """:return: LibriSpeech's layout, and a tar file of it"""
    make_librispeech(str(folder / "LibriSpeech"), {"dev-clean": 3}, seconds=0.05)
    with tarfile.open(folder / "dev-clean.tar", "w") as archive:
        archive.add(folder / "LibriSpeech", "LibriSpeech")
    return (folder / "dev-clean.tar").read_bytes()


@FUZZ
@given(data=st.data(), compressed=st.booleans())
def test_tar_with_other_bytes(folder, source, data, compressed):
    content = gzip.compress(source, mtime=0) if compressed else source
    tokens = (b"../../x", b"/etc/x", b"00777777777777", b"\0" * 512, b"2")
    filename = str(folder / ("z.tar.gz" if compressed else "z.tar"))
    with open(filename, "wb") as file:
        file.write(data.draw(damaged(content, tokens)))
    try:
        for _, chapter in chapters_of_tar(filename, "dev-clean"):
            for item in make_items(chapter):
                assert item.problem is None or isinstance(item.problem, str)
    except CorpusError as exc:
        assert filename in str(exc)


entry_texts = st.builds(
    ListedUtterance,
    text=any_text,
    duration=st.floats(0, 1e5),
    file=st.just("x.flac"),
    seq_name=any_text.filter(bool),
)


def write_part(filename, listing: bytes) -> None:
    with zipfile.ZipFile(filename, "w") as archive:
        archive.writestr("dev/x.flac", b"abc")
        archive.writestr("dev.txt", listing)


def as_returnn_reads(listing: bytes) -> list[dict]:
    from returnn.util.literal_py_to_pickle import literal_eval

    return literal_eval(listing)


@FUZZ
@given(utterances=st.lists(entry_texts, max_size=4))
def test_listing_round_trip(folder, utterances):
    listing = format_listing(utterances)
    write_part(folder / "dev.zip", listing)
    found = list(iter_listing(str(folder / "dev.zip")))
    for got in (found, [ListedUtterance(**read) for read in as_returnn_reads(listing)] if utterances else []):
        assert [(u.text, u.file, u.seq_name) for u in got] == [(u.text, u.file, u.seq_name) for u in utterances]
        assert all(abs(a.duration - b.duration) <= 1e-9 for a, b in zip(got, utterances, strict=True))


LISTING = format_listing([ListedUtterance(text, 1.5, "x.flac", f"dev/{text}") for text in ("a", "it's", "\n\x1b")])


@FUZZ
@given(
    listing=damaged(
        LISTING, tokens=(b"1e-5", b"True", b"()", b"\\N{DIGIT ONE}", b"9" * 30, b"b''", b"'\n'", b"-", b"#", b"\\8")
    )
)
@example(listing=b"[{'text': 'a', 'duration': 1.5, 'file': 'x.flac', 'seq_name': 'b', 'more': 99999999999999999999}]")
@example(listing=b"[{'text': 'a', 'duration': 1e-5, 'file': 'x.flac', 'seq_name': 'b'}]")
@example(listing=b"[\n{'text': 'a' 'b', 'duration': 1.5, 'file': 'x.flac', 'seq_name': 'b'},\n]\n")
def test_what_is_accepted_is_what_returnn_reads(folder, listing):
    """RETURNN's parser would end the process at some of them, so it gets only what was accepted."""
    write_part(folder / "dev.zip", listing)
    try:
        found = list(iter_listing(str(folder / "dev.zip")))
    except PreparedCorpusError as exc:
        assert "dev.zip" in str(exc)
        return
    if found:
        got = as_returnn_reads(listing)
        assert [(e["text"], e["duration"], e.get("seq_name", e.get("file"))) for e in got] == [
            (u.text, u.duration, u.seq_name) for u in found
        ]
        assert ast.literal_eval(listing.decode("utf8")) == got


@FUZZ
@given(data=st.data())
def test_zip_with_other_bytes(folder, data):
    write_part(folder / "whole.zip", LISTING)
    (folder / "dev.zip").write_bytes(data.draw(damaged((folder / "whole.zip").read_bytes())))
    try:
        list(iter_listing(str(folder / "dev.zip")))
    except PreparedCorpusError as exc:
        assert "dev.zip" in str(exc)


@FUZZ
@given(data=st.data(), compressed=st.booleans())
def test_text_with_other_bytes(folder, data, compressed):
    content = b"THE FIRST SENTENCE\nIT'S A\n" * 4
    content = gzip.compress(content, mtime=0) if compressed else content
    filename = str(folder / ("text.gz" if compressed else "text.txt"))
    with open(filename, "wb") as file:
        file.write(data.draw(damaged(content)))
    try:
        write_lm_text(str(folder / "lm"), "lm", [filename], str.lower)
    except CorpusError as exc:
        assert filename in str(exc)
    try:
        list(read_sentences((filename,)))
    except OptionError as exc:
        assert filename in str(exc)


# ---- prepared corpora


@pytest.fixture(scope="module")
def prepared(folder):
    """:return: folder of a tiny corpus"""
    make_librispeech(str(folder / "small"), {"train": 7, "dev": 1}, seconds=0.2)
    args = [
        str(folder / "small"),
        str(folder / "demo"),
        "--workers",
        "1",
        "--corpus",
        "demo",
        "--vocab",
        "spm_unigram_40",
    ]
    assert prepare_librispeech(args) == 0
    return folder / "demo", json.loads((folder / "demo" / "corpus.json").read_text())


@FUZZ
@given(data=st.data())
def test_manifest(prepared, data):
    place, manifest = prepared
    if data.draw(st.booleans()):
        content = dump(data.draw(damaged_json(manifest)))
    else:
        content = data.draw(damaged(dump(manifest)))
    (place / "corpus.json").write_bytes(content)
    opts = CorpusOptions(data_dir=str(place), vocab="spm_unigram_40", train_parts=("train",))
    try:
        corpus = open_corpus("demo", opts, parts=("train", "dev"), prepare_command="make data")
        assert corpus.num_seqs(("train", "dev")) >= 0
        corpus.train_dataset()
    except OptionError as exc:
        assert str(place) in str(exc)
    try:
        before = Manifest(str(place), "demo", created_by="x")
        for part in ("train", "dev"):
            before.part(part)
    except CorpusError as exc:
        assert str(place) in str(exc)


@FEW
@given(data=st.data())
def test_sentencepiece_model_with_other_bytes(prepared, data):
    place, _ = prepared
    whole = (place / "vocab" / "spm_unigram_40.model").read_bytes()
    description = (place / "vocab" / "spm_unigram_40.json").read_bytes()
    (place / "vocab" / "spm_unigram_40.model").write_bytes(data.draw(damaged(whole)))
    try:
        vocab = load_vocab(str(place / "vocab" / "spm_unigram_40.json"))
        vocab.labels_to_text(vocab.text_to_labels("THE FOX"))
    except ValueError as exc:
        assert "spm_unigram_40" in str(exc)
    finally:
        (place / "vocab" / "spm_unigram_40.model").write_bytes(whole)
    assert json.loads(description)["num_labels"] == 40


# ---- records of runs and tools, for the report and the results

TUNING = {
    "format": 1,
    "run": "run",
    "parts": ["dev"],
    "search": "x",
    "num_utts": 1,
    "max_hyps": 2,
    "criterion": "wer",
    "scales_before": {"att": 1.0, "ctc": 0.5},
    "scales": {"att": 2.0, "ctc": 0.5},
    "results": {"before": {"num_errors": 1, "wer_percent": 2.0, "confidence_95": [1.0, 2.0]}},
    "intervals": {"att": {"best": [0.1, 2.0], "confidence": None, "range": [0.0, 5.0]}},
    "warnings": ["w"],
    "overrides": ["++att_scale", "2"],
    "curves": [{"component": "att", "scales": [0.0, 1.0, 2.0], "wer_percent": [1.0, 2.0, 3.0]}],
    "surface": {
        "x": {"component": "att", "scales": [0.0, 1.0]},
        "y": {"component": "ctc", "scales": [0.0, 1.0]},
        "wer_percent": [[1.0, 2.0], [3.0, 4.0]],
    },
}
BEAMS = {"config": "c/x.config", "overrides": [], "parts": ["dev"], "points": []}
for beam in (1, 2, 4):
    point = {"beam_size": beam, "num_utts": 5, "wer": 9.0, "worse_than_best_known": 1.0, "search_errors": None}
    BEAMS["points"].append({**point, "model_errors": None, "real_time_factor": 0.01})
PAIRS_UTT = {"seq_tag": "dev/1", "kind": "search_error", "gap": 0.5, "ref": "a b", "hyp": "a c", "rank": None}
PAIRS = {
    "format": 1,
    "pairs": [
        {
            "run": "run",
            "search": "label_sync",
            "parts": ["dev"],
            "num_utts": 1,
            "percent": {"search_error": 100.0},
            "wer_percent": 50.0,
            "wer_percent_without_search_errors": 0.0,
            "utterances": [PAIRS_UTT],
            "audit": {"num_hyps": 1, "num_different": 0, "max_gap": 0.0, "num_first_higher": 0, "examples": []},
        }
    ],
}


@pytest.fixture(scope="module")
def run_folder(folder):
    """:return: output of a recognition run"""
    place = folder / "demo_recog_labelsync"
    place.mkdir()
    with NBestWriter(str(place / "nbest.jsonl"), NBestHeader("label_sync", {"att": 0.7, "ctc": 0.3})) as writer:
        hyps = [Hypothesis([1], "a", -1.0, {"att": -1.0, "ctc": -1.0})]
        writer.write(Utterance("dev/1", 1.0, 5, "a b", hyps))
    return place


@settings(FUZZ, max_examples=12)
@given(data=st.data(), record=st.sampled_from([TUNING, BEAMS, PAIRS]))
def test_records_of_tools(folder, data, record):
    """The page is made, or one sentence says which file is not as the tool writes it."""
    filename = str(folder / "tool.json")
    with open(filename, "wb") as file:
        file.write(dump(data.draw(damaged_json(record))))
    try:
        page = render(load_inputs([filename]), title="t", command=["x"])
    except ValueError as exc:
        assert filename in str(exc)
        return
    assert page.rstrip().endswith("</html>")


@FEW
@given(
    content=st.one_of(
        any_json, damaged_json({"parts": {"dev": {"num_utts": 1}}, "search": "x", "time": {"encoder": 1.0}})
    ),
    log=any_text,
)
def test_records_of_runs(run_folder, content, log):
    for name in ("options.json", "wer.json", "other.json"):
        (run_folder / name).write_bytes(dump(content))
    (run_folder / "returnn.log").write_text(
        f"RETURNN command line options: {log}\nRETURNN command line options: [{log!r}]\n"
    )
    try:
        render(load_inputs([str(run_folder)]), title="t", command=["x"])
    except ValueError as exc:
        assert str(run_folder) in str(exc)
    for path in (str(run_folder), str(run_folder / "wer.json")):
        if path == str(run_folder / "wer.json"):
            os.rename(run_folder / "nbest.jsonl", run_folder / "away")
        try:
            result_of_run(read_run(path), corpus="demo", model="m", machine="x")
        except ResultError as exc:
            assert str(exc)
        finally:
            if (run_folder / "away").exists():
                os.rename(run_folder / "away", run_folder / "nbest.jsonl")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_deep_json(prepared, run_folder, folder, text):
    """Python's parser gives up with an error that is no ValueError."""
    place, manifest = prepared
    (place / "corpus.json").write_text(text)
    opts = CorpusOptions(data_dir=str(place), vocab="spm_unigram_40")
    with pytest.raises(OptionError, match=r"corpus\.json"):
        open_corpus("demo", opts, parts=("dev",), prepare_command="make data")
    (place / "corpus.json").write_bytes(dump(manifest))
    description = (place / "vocab" / "spm_unigram_40.json").read_bytes()
    (place / "vocab" / "spm_unigram_40.json").write_text(text)
    with pytest.raises(OptionError, match=r"spm_unigram_40\.json: not JSON"):
        open_corpus("demo", opts, parts=("dev",), prepare_command="make data")
    (place / "vocab" / "spm_unigram_40.json").write_bytes(description)
    for name in ("options.json", "wer.json"):
        (run_folder / name).write_text(text)
    render(load_inputs([str(run_folder)]), title="t", command=["x"])
    with pytest.raises(ResultError, match=r"options\.json: not JSON"):
        read_run(str(run_folder))
    (folder / "deep.json").write_text(text)
    with pytest.raises(ValueError, match=r"deep\.json: not JSON"):
        load_inputs([str(folder / "deep.json")])
