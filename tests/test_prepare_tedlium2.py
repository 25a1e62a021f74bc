"""tools/prepare_tedlium2.py on a tiny corpus with SPHERE and STM files."""

from __future__ import annotations

import gzip
import json
import os

import numpy
import pytest
from corpora import SAMPLE_RATE, make_tedlium2, noise, write_file, write_sphere

from recog.prepared_corpus import iter_listing
from tools.corpus.tedlium2 import Segment, clean_text, parse_stm, with_padding
from tools.prepare_tedlium2 import main


@pytest.fixture
def src(tmp_path):
    folder = str(tmp_path / "TEDLIUM_release2")
    make_tedlium2(folder)
    return folder


@pytest.fixture
def dst(tmp_path):
    return str(tmp_path / "prepared")


def run(src, dst, *args) -> int:
    return main([src, dst, "--workers", "1", *args])


def manifest(dst):
    with open(os.path.join(dst, "corpus.json"), encoding="utf8") as file:
        return json.load(file)


def read_dataset(dst, parts, vocab):
    """:return: seq tag -> (audio [samples], text), read by RETURNN with the options of the configs"""
    from returnn.datasets.basic import init_dataset

    from configs.base.corpus import CorpusOptions, open_corpus

    opts = CorpusOptions(data_dir=dst, vocab=vocab, peak_normalization=False)
    corpus = open_corpus("tedlium2", opts, parts=parts, prepare_command="?")
    dataset = init_dataset(corpus.forward_dataset(parts))
    dataset.init_seq_order(epoch=1)
    res = {}
    for seq in range(dataset.num_seqs):
        dataset.load_seqs(seq, seq + 1)
        text = bytes(dataset.get_data(seq, "orth")).decode("utf8")
        res[dataset.get_tag(seq)] = (dataset.get_data(seq, "data")[:, 0], text)
    return res


def test_returnn_reads_what_was_prepared(tmp_path, dst):
    src = str(tmp_path / "TEDLIUM_release2")
    texts = make_tedlium2(src, {"train": 7, "dev": 3})
    assert run(str(tmp_path), dst, "--vocab", "spm_unigram_40", "--lm-text", os.path.join(src, "LM")) == 0
    seqs = read_dataset(dst, ("train", "dev"), "spm_unigram_40")
    assert {tag: text for tag, (_, text) in seqs.items()} == {tag: clean_text(text) for tag, text in texts.items()}
    assert any("'" in text for _, text in seqs.values()) and not any("<unk>" in text for _, text in seqs.values())
    for tag, (audio, _) in seqs.items():  # the generator writes noise(..., seed) for each talk
        part, name = tag.split("/")
        talk, start, end = name.rsplit("-", 2)
        part_number, first = int(talk[len("Speaker")]), int(talk[len("Speaker0") : -len("_2010")])
        recording = noise(0.5 + 3 * 0.8, seed=1000 * part_number + first)
        start, end = int(start) / 100, int(end) / 100
        if part == "train":  # 0.3 s between segments: 0.1 s behind one, 0.15 s before the next
            start, end = start - 0.15, min(end + 0.1, len(recording) / SAMPLE_RATE)
        expected = recording[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        numpy.testing.assert_array_equal(audio, expected.astype("float32") / 32768)
    parts = manifest(dst)["parts"]
    assert (parts["train"]["num_seqs"], parts["train"]["expected_num_seqs"]) == (7, 92_973)
    assert (parts["dev"]["num_seqs"], parts["dev"]["expected_num_seqs"]) == (3, 507)
    with gzip.open(os.path.join(dst, "lm", "lm.txt.gz"), "rt") as file:
        assert file.read() == "it's a text\nfor the language model\n"


def test_reproducible_in_parallel_and_kept(src, dst, tmp_path):
    assert run(src, dst) == 0
    other = str(tmp_path / "other")
    assert main([src, other, "--workers", "2"]) == 0
    for part in ("train", "dev", "test"):
        with open(os.path.join(dst, f"{part}.zip"), "rb") as a, open(os.path.join(other, f"{part}.zip"), "rb") as b:
            assert a.read() == b.read()
    before = os.stat(os.path.join(dst, "train.zip")).st_mtime_ns
    assert run(src, dst) == 0
    assert os.stat(os.path.join(dst, "train.zip")).st_mtime_ns == before


def test_contractions_and_padding_are_options(src, dst, capsys):
    assert run(src, dst, "--contractions", "split", "--train-padding", "0", "0", "--subset", "4") == 0
    listing = list(iter_listing(os.path.join(dst, "train.zip")))
    assert [entry.duration for entry in listing] == pytest.approx([0.5] * 4)
    assert listing[1].text == "it 's a question of time"
    assert run(src, dst, "--subset", "4") == 1  # was made in another way
    assert "--contractions split" in capsys.readouterr().err
    assert run(src, dst, "--train-padding", "-1", "0") == 1


def test_clean_text():
    assert clean_text("It 's the <unk> workers ' party don 't") == "it's the workers' party don't"
    assert clean_text("it's don 't", "split") == "it 's don 't"
    assert clean_text("a(2) word {NOISE} <sil> [laughter] (Talk_2010-12)") == "a word"
    assert clean_text("imiss minimiss") == "i miss minimiss"
    assert clean_text("<unk>") == ""
    assert clean_text("rock 'n roll 'em") == "rock 'n roll 'em"


def test_parse_stm():
    content = """;; comment
A 1 A_speaker 5.50 6.25 <o,f0,female> hello <unk>

A 1 A_speaker 1.00 5.50 <NA> first
A 1 inter_segment_gap 0.00 1.00 <o,,unknown> ignore_time_segment_in_scoring
A A A_speaker 7 8 <unk> no label
A A A_speaker 8 9
"""
    assert parse_stm(content) == [
        Segment("A", 1.0, 5.5, "first"),
        Segment("A", 5.5, 6.25, "hello <unk>"),
        Segment("A", 7.0, 8.0, "<unk> no label"),
        Segment("A", 8.0, 9.0, ""),
    ]
    assert parse_stm(content)[1].name == "A-0000550-0000625"
    for line in ("A 1 A 1.0", "A 1 A x 2.0 <o> text", "A 1 A 2.0 1.0 <o,,> text", "A 1 A nan 1.0 <o,,> text"):
        with pytest.raises(ValueError, match="line 2"):
            parse_stm(";;\n" + line)


def test_padding_stays_between_the_neighbours():
    times = [(0.1, 1.0), (1.05, 2.0), (2.0, 3.0), (2.9, 3.5), (5.0, 6.0)]
    segments = [Segment("A", start, end, "") for start, end in times]
    padded = [(start, end) for _, start, end in with_padding(segments, (0.15, 0.1))]
    expected = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (2.9, 3.6), (4.85, 6.1)]
    assert padded == [pytest.approx(times) for times in expected]
    assert [(start, end) for _, start, end in with_padding(segments, (0.0, 0.0))] == times


def test_broken(src, dst, capsys):
    first, second = "Speaker00_2010", "Speaker03_2010"
    sph, stm = os.path.join(src, "train", "sph"), os.path.join(src, "train", "stm")
    write_sphere(os.path.join(sph, f"{first}.sph"), noise(1.2, 1))  # ends within the first segments
    write_sphere(os.path.join(sph, "Rate_2010.sph"), noise(1.0, 1), sample_rate=8000)
    write_file(os.path.join(stm, "Rate_2010.stm"), "Rate_2010 1 X 0.0 1.0 <o,f0,male> text\n")
    write_file(os.path.join(sph, "Damaged_2010.sph"), b"NIST_1A\n   1024\n")
    write_file(os.path.join(stm, "Damaged_2010.stm"), "Damaged_2010 1 X 0.0 1.0 <o,f0,male> text\n")
    write_sphere(os.path.join(sph, "Cut_2010.sph"), noise(2.0, 1))
    os.truncate(os.path.join(sph, "Cut_2010.sph"), 40_000)
    write_file(os.path.join(stm, "Cut_2010.stm"), "Cut_2010 1 X 0.0 1.0 <o,f0,male> text\n")
    write_file(os.path.join(stm, "NoAudio_2010.stm"), "NoAudio_2010 1 X 0.0 1.0 <o,f0,male> text\n")
    write_sphere(os.path.join(sph, "NoText_2010.sph"), noise(1.0, 1))
    write_sphere(os.path.join(sph, "Latin_2010.sph"), noise(1.0, 1))
    write_file(os.path.join(stm, "Latin_2010.stm"), b"Latin_2010 1 X 0.0 1.0 <o,f0,male> caf\xe9\n")
    write_file(os.path.join(stm, "Malformed_2010.stm"), "Malformed_2010 1 X zero 1.0 <o,f0,male> text\n")
    write_file(os.path.join(stm, "Other_2010.stm"), "Another_2010 1 X 0.0 1.0 <o,f0,male> text\n")
    expected = {
        f"{first}-0000210-0000260": "the recording ends before, after 1.20 seconds",
        "Rate_2010": "sample rate 8000 Hz instead of 16000 Hz",
        "Damaged_2010": "cannot be read",
        "Cut_2010": "cut off: 19488 samples of 32000 that its header promises",
        "NoAudio_2010": "no audio file (.sph) for its 1 segments",
        "NoText_2010": "no segments (.stm)",
        "Latin_2010": "is not UTF-8",
        "Malformed_2010": "line 1: 'Malformed_2010 1 X zero",
        "Other_2010": "is about Another_2010",
    }
    assert run(src, dst) == 1
    out, err = capsys.readouterr()
    for name, problem in expected.items():
        assert any(f"train/{name}: " in line and problem in line for line in out.splitlines()), (name, out)
    assert "not made: train" in err and not os.path.exists(os.path.join(dst, "train.zip"))
    assert sorted(manifest(dst)["parts"]) == ["dev", "test"]
    assert run(src, dst, "--skip-broken") == 0
    names = [entry.seq_name for entry in iter_listing(os.path.join(dst, "train.zip"))]
    assert f"train/{first}-0000050-0000100" in names and sum(second in name for name in names) == 3
    assert len(manifest(dst)["parts"]["train"]["skipped"]) == out.count("\n  train/")


def test_no_corpus(tmp_path, dst, capsys):
    assert run(str(tmp_path), dst) == 1
    assert "expected train, dev or test" in capsys.readouterr().err
