"""tools/prepare_librispeech.py on tiny corpora: what is packed, what is refused, what is kept."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy
import pytest
import soundfile
from corpora import SAMPLE_RATE, make_librispeech, noise, write_file

from recog.prepared_corpus import iter_listing
from recog.vocab import load_vocab
from tools.corpus.librispeech import EXPECTED_NUM_SEQS, find_parts
from tools.corpus.parallel import parallel_map
from tools.corpus.vocabulary import parse_vocab_name
from tools.prepare_librispeech import main

CHAPTER = ("train-clean-100", "19", "198")


@pytest.fixture
def src(tmp_path):
    folder = str(tmp_path / "LibriSpeech")
    make_librispeech(folder, {"train-clean-100": 7, "dev-clean": 6})
    return folder


@pytest.fixture
def dst(tmp_path):
    return str(tmp_path / "prepared")


def run(src, dst, *args) -> int:
    return main([src, dst, "--workers", "1", *args])


def manifest(dst):
    with open(os.path.join(dst, "corpus.json"), encoding="utf8") as file:
        return json.load(file)


def chapter_file(src, name):
    return os.path.join(src, *CHAPTER, name)


def read_dataset(dst, parts, vocab):
    """:return: seq tag -> (audio [samples], text, labels), read by RETURNN with the options of the configs"""
    from returnn.datasets.basic import init_dataset

    from configs.base.corpus import CorpusOptions, open_corpus

    opts = CorpusOptions(data_dir=dst, vocab=vocab, peak_normalization=False)
    corpus = open_corpus("librispeech", opts, parts=parts, prepare_command="?")
    dataset = init_dataset(corpus.forward_dataset(parts))
    dataset.init_seq_order(epoch=1)
    res = {}
    for seq in range(dataset.num_seqs):
        dataset.load_seqs(seq, seq + 1)
        text = bytes(dataset.get_data(seq, "orth")).decode("utf8")
        res[dataset.get_tag(seq)] = (dataset.get_data(seq, "data")[:, 0], text, dataset.get_data(seq, "classes"))
    return res


def test_returnn_reads_what_was_prepared(tmp_path, dst):
    src = str(tmp_path / "LibriSpeech")
    texts = make_librispeech(src, {"train-clean-100": 7, "dev-clean": 4})
    assert run(str(tmp_path), dst, "--vocab", "spm_unigram_40") == 0  # the folder that holds LibriSpeech
    vocab = load_vocab(os.path.join(dst, "vocab", "spm_unigram_40.json"))
    seqs = read_dataset(dst, ("train-clean-100", "dev-clean"), "spm_unigram_40")
    assert {tag: text for tag, (_, text, _) in seqs.items()} == texts
    for tag, (audio, text, labels) in seqs.items():
        part, name = tag.split("/")
        speaker, chapter, _ = name.split("-")
        original, _ = soundfile.read(os.path.join(src, part, speaker, chapter, f"{name}.flac"), dtype="float32")
        numpy.testing.assert_array_equal(audio, original)
        assert list(labels) == vocab.text_to_labels(text)
        assert vocab.labels_to_text(labels) == text
    parts = manifest(dst)["parts"]
    assert parts["train-clean-100"]["num_seqs"] == 7
    assert parts["train-clean-100"]["expected_num_seqs"] == 28_539
    assert not parts["train-clean-100"]["complete"]
    assert parts["dev-clean"]["num_words"] == sum(len(t.split()) for tag, t in texts.items() if tag.startswith("dev"))
    seconds = sum(len(audio) for tag, (audio, *_) in seqs.items() if tag.startswith("dev")) / SAMPLE_RATE
    assert parts["dev-clean"]["hours"] == pytest.approx(seconds / 3600)


def test_published_numbers():
    assert sum(n for part, n in EXPECTED_NUM_SEQS.items() if part.startswith("train")) == 281_241


def test_flac_is_copied_and_zip_is_reproducible(src, dst, tmp_path):
    assert run(src, dst) == 0
    other = str(tmp_path / "other")
    assert main([src, other, "--workers", "2"]) == 0  # in other processes, in the same order
    for name in ("train-clean-100.zip", "dev-clean.zip"):
        with open(os.path.join(dst, name), "rb") as a, open(os.path.join(other, name), "rb") as b:
            assert a.read() == b.read()
    with zipfile.ZipFile(os.path.join(dst, "train-clean-100.zip")) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        with open(chapter_file(src, "19-198-0001.flac"), "rb") as file:
            assert archive.read("train-clean-100/19-198-0001.flac") == file.read()


def test_second_run_keeps_everything(src, dst, tmp_path, capsys):
    lm = str(tmp_path / "lm.txt")
    write_file(lm, "a sentence\n")
    args = ("--vocab", "spm_unigram_40", "--lm-text", lm)
    assert run(src, dst, *args) == 0
    first = capsys.readouterr().out
    assert "vocabulary spm_unigram_40: 40 labels" in first and "1 sentences" in first

    def state():
        return {
            os.path.join(path, name): os.stat(os.path.join(path, name)).st_mtime_ns
            for path, _, names in os.walk(dst)
            for name in names
        }

    before = state()
    assert run(src, dst, *args) == 0
    assert state() == before
    second = capsys.readouterr().out
    assert "train-clean-100" in second and "vocabulary" not in second and "sentences" not in second
    # what is missing is made, the rest is kept
    os.remove(os.path.join(dst, "dev-clean.zip"))
    assert run(src, dst, *args) == 0
    changed = {os.path.basename(name) for name, time in state().items() if before[name] != time}
    assert changed == {"dev-clean.zip", "corpus.json"}


def test_unfinished_part_has_no_name(src, dst, monkeypatch):
    """An exception in the middle (as Ctrl-C) leaves the finished part and no other."""
    from tools.corpus import librispeech, prepare

    made = []

    def interrupted(chapter, audio_format):
        made.append(chapter.place)
        if len(made) > 3:
            raise KeyboardInterrupt
        return librispeech.make_items(chapter, audio_format)

    monkeypatch.setattr("tools.prepare_librispeech.make_items", interrupted)
    assert run(src, dst) == 1
    assert sorted(os.listdir(dst)) == ["corpus.json", "train-clean-100.zip"]
    assert list(manifest(dst)["parts"]) == ["train-clean-100"]
    monkeypatch.undo()
    packed = []
    monkeypatch.setattr(
        prepare,
        "pack_part",
        lambda m, part, *args, _f=prepare.pack_part, **kw: packed.append(part) or _f(m, part, *args, **kw),
    )
    assert run(src, dst) == 0
    assert packed == ["dev-clean"]


def test_other_options_do_not_replace_a_part_silently(src, dst, capsys):
    assert run(src, dst, "--subset", "2") == 0
    assert manifest(dst)["parts"]["dev-clean"]["num_seqs"] == 2
    assert run(src, dst) == 1
    assert "--subset 2" in capsys.readouterr().err
    assert run(src, dst, "--remake") == 0
    assert manifest(dst)["parts"]["dev-clean"]["num_seqs"] == 6


def test_parts(src, dst, capsys):
    assert run(src, dst, "--parts", "dev-clean") == 0
    assert list(manifest(dst)["parts"]) == ["dev-clean"]
    assert run(src, dst, "--parts", "test-clean") == 1
    assert "no part 'test-clean'" in capsys.readouterr().err
    assert run(src, dst, "--parts", "dev-clean", "--vocab", "bpe_5") == 1
    assert "none has been prepared" in capsys.readouterr().err


def break_audio(src):
    """:return: what is expected in the report"""
    write_file(chapter_file(src, "19-198-0000.flac"), b"fLaC but no FLAC file")
    soundfile.write(chapter_file(src, "19-198-0001.flac"), noise(0.3, 1), 8000)
    stereo = numpy.stack([noise(0.3, 1)] * 2, axis=1)
    soundfile.write(chapter_file(src, "19-198-0002.flac"), stereo, SAMPLE_RATE)
    other = os.path.join(src, "train-clean-100", "20", "198", "20-198-0000.flac")
    with open(other, "rb") as file:
        content = file.read()
    write_file(other, content[: len(content) // 2])
    soundfile.write(other.replace("0000", "0001"), noise(0, 1), SAMPLE_RATE, format="WAV")
    not_finite = numpy.array([0.5, numpy.nan], dtype="float32")
    soundfile.write(other.replace("0000", "0002"), not_finite, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return {
        "19-198-0000": "cannot be read",
        "19-198-0001": "sample rate 8000 Hz instead of 16000 Hz",
        "19-198-0002": "2 channels instead of one",
        "20-198-0000": "",
        "20-198-0001": "no samples",
        "20-198-0002": "not finite",
    }


def break_texts(src):
    folder = os.path.join(src, "train-clean-100")
    transcripts = os.path.join(folder, "19", "198", "19-198.trans.txt")
    os.remove(chapter_file(src, "19-198-0002.flac"))
    with open(transcripts, "a", encoding="utf8") as file:
        file.write("19-198-0000 AGAIN\n19-198-0007\n")
    shutil.copy(chapter_file(src, "19-198-0000.flac"), chapter_file(src, "19-198-0007.flac"))
    shutil.copy(chapter_file(src, "19-198-0000.flac"), chapter_file(src, "19-198-0009.flac"))
    with open(os.path.join(folder, "20", "198", "20-198.trans.txt"), "ab") as file:
        file.write(b"20-198-0009 CAF\xe9\n")
    make_librispeech(folder + "-x", {"train-clean-100": 1})
    os.makedirs(os.path.join(folder, "25"))
    shutil.copytree(os.path.join(folder + "-x", "train-clean-100", "19", "198"), os.path.join(folder, "25", "198"))
    os.remove(os.path.join(folder, "25", "198", "19-198.trans.txt"))
    shutil.rmtree(folder + "-x")
    return {
        "19-198-0002": "a transcript, but no audio file",
        "19-198-0000": "two transcripts",
        "19-198-0007": "the transcript is empty",
        "19-198-0009": "an audio file, but no transcript",
        "20/198": "is not UTF-8",
        "25/198": "no transcript file (.trans.txt) for its 1 audio files",
    }


@pytest.mark.parametrize(("break_something", "num_left"), [(break_audio, 1), (break_texts, 3)])
def test_broken(src, dst, capsys, break_something, num_left):
    expected = break_something(src)
    assert run(src, dst) == 1
    out, err = capsys.readouterr()
    for name, problem in expected.items():
        assert any(f"train-clean-100/{name}: " in line and problem in line for line in out.splitlines()), (name, out)
    assert f"{len(expected)} problems" in out
    assert "not made: train-clean-100" in err
    assert not os.path.exists(os.path.join(dst, "train-clean-100.zip"))
    assert list(manifest(dst)["parts"]) == ["dev-clean"]  # what is sound is made
    assert run(src, dst, "--skip-broken") == 0
    info = manifest(dst)["parts"]["train-clean-100"]
    assert info["num_seqs"] == num_left and len(info["skipped"]) == len(expected) and not info["complete"]
    assert run(src, dst) == 1  # does not pass as sound later


def test_odd_audio_is_prepared(src, dst):
    """One sample, digital silence, 10 minutes: audio all the same. (Training decides whether it can use them.)"""
    seconds = {"19-198-0000": 1 / SAMPLE_RATE, "19-198-0001": 2.0, "19-198-0002": 600.0}
    for name, duration in seconds.items():
        audio = numpy.zeros(round(duration * SAMPLE_RATE), dtype="int16")
        soundfile.write(chapter_file(src, f"{name}.flac"), audio, SAMPLE_RATE, subtype="PCM_16")
    assert run(src, dst) == 0
    listing = {entry.seq_name: entry.duration for entry in iter_listing(os.path.join(dst, "train-clean-100.zip"))}
    for name, duration in seconds.items():
        assert listing[f"train-clean-100/{name}"] == pytest.approx(duration, abs=1e-9)


def test_part_without_utterances(src, dst, capsys):
    os.makedirs(os.path.join(src, "test-clean", "1", "2"))
    assert run(src, dst, "--parts", "test-clean") == 1
    assert "test-clean: there is no utterance in it" in capsys.readouterr().err
    assert not os.path.exists(os.path.join(dst, "test-clean.zip"))


def test_same_name_twice(src, dst, capsys):
    copy = os.path.join(src, "train-clean-100", "19", "199")
    shutil.copytree(os.path.join(src, *CHAPTER), copy)
    assert run(src, dst) == 1
    assert "train-clean-100/19-198-0000: there is another utterance of this name" in capsys.readouterr().out


def pack_tar(folder, filename, mode="w:gz", order=None):
    with tarfile.open(filename, mode) as archive:
        names = [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]
        for name in sorted(names, key=order):
            archive.add(name, os.path.join("LibriSpeech", os.path.relpath(name, os.path.dirname(folder))))


@pytest.mark.parametrize("order", [None, os.path.basename, lambda name: name[::-1]], ids=["path", "name", "scattered"])
def test_tar_files_give_the_same_as_folders(src, dst, tmp_path, order):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for part in ("train-clean-100", "dev-clean"):
        pack_tar(os.path.join(src, part), str(downloads / f"{part}.tar.gz"), order=order)
    write_file(str(downloads / "train-clean-100.tar.gz.md5"), "no archive")
    assert run(str(downloads), dst) == 0
    assert sorted(os.listdir(downloads)) == ["dev-clean.tar.gz", "train-clean-100.tar.gz", "train-clean-100.tar.gz.md5"]
    other = str(tmp_path / "other")
    assert run(src, other) == 0
    for part in ("train-clean-100", "dev-clean"):
        listings = [list(iter_listing(os.path.join(folder, f"{part}.zip"))) for folder in (dst, other)]
        assert sorted(listings[0], key=str) == sorted(listings[1], key=str)
    assert list(find_parts(str(downloads / "dev-clean.tar.gz"))) == ["dev-clean"]


def hostile_member(kind):
    names = {"parent": "LibriSpeech/dev-clean/../../../evil.flac", "absolute": "/evil/dev-clean/evil.flac"}
    member = tarfile.TarInfo(names.get(kind, "LibriSpeech/dev-clean/1/2/1-2-0000.flac"))
    member.type = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}.get(
        kind, tarfile.REGTYPE
    )
    member.linkname = "/etc/passwd"
    return member


@pytest.mark.parametrize("kind", ["parent", "absolute", "symlink", "hardlink", "device"])
def test_hostile_tar(tmp_path, dst, capsys, kind):
    filename = str(tmp_path / "dev-clean.tar.gz")
    with tarfile.open(filename, "w:gz") as archive:
        archive.addfile(hostile_member(kind), io.BytesIO(b""))
    assert run(filename, dst) == 1
    assert "refused" in capsys.readouterr().err
    assert os.listdir(dst) == []
    assert sorted(os.listdir(tmp_path)) == ["dev-clean.tar.gz", "prepared"]


def test_truncated_tar(src, tmp_path, dst, capsys):
    filename = str(tmp_path / "dev-clean.tar.gz")
    pack_tar(os.path.join(src, "dev-clean"), filename)
    with open(filename, "rb") as file:
        content = file.read()
    write_file(filename, content[: len(content) * 2 // 3])
    assert run(filename, dst) == 1
    assert "download it again" in capsys.readouterr().err
    assert os.listdir(dst) == []


def test_ogg(src, dst):
    assert run(src, dst, "--audio-format", "ogg", "--vocab", "bpe_10") == 0
    assert all(entry.file.endswith(".ogg") for entry in iter_listing(os.path.join(dst, "dev-clean.zip")))
    lossy = read_dataset(dst, ("dev-clean",), "bpe_10")
    for tag, (audio, *_) in lossy.items():
        name = tag.split("/")[1]
        speaker, chapter, _ = name.split("-")
        original, _ = soundfile.read(os.path.join(src, "dev-clean", speaker, chapter, f"{name}.flac"), dtype="float32")
        assert len(audio) == len(original)
        assert numpy.corrcoef(audio, original)[0, 1] > 0.5


@pytest.mark.parametrize(("name", "kind", "num_labels"), [("spm_bpe_50", "sentencepiece", 50), ("bpe_20", "bpe", None)])
def test_trained_vocabs(tmp_path, dst, name, kind, num_labels):
    src = str(tmp_path / "LibriSpeech")
    texts = make_librispeech(src, {"train-clean-100": 14})
    assert run(src, dst, "--vocab", name) == 0
    vocab = load_vocab(os.path.join(dst, "vocab", f"{name}.json"))
    assert vocab.type == kind and vocab.eos_index == 0
    assert num_labels in (None, vocab.num_labels)
    for text in [*texts.values(), "QUICK VEX BOX", "ZZ"]:  # words that are not in training, of the same letters
        labels = vocab.text_to_labels(text)
        assert vocab.labels_to_text(labels) == text
        assert 0 not in labels and max(labels) < vocab.num_labels
    with open(os.path.join(dst, "vocab", f"{name}.vocab"), encoding="utf8") as file:
        lines = file.read().splitlines()
    assert len(lines) == vocab.num_labels and lines[0].split("\t")[0] == "<s>"
    assert manifest(dst)["vocabs"][name]["trained_on"] == ["train-clean-100"]


def test_vocab_is_kept_when_training_data_grows(src, dst, capsys):
    assert run(src, dst, "--vocab", "spm_unigram_40") == 0
    before = manifest(dst)["vocabs"]["spm_unigram_40"]
    make_librispeech(src, {"train-other-500": 9})
    assert run(src, dst, "--vocab", "spm_unigram_40") == 0
    assert "is kept" in capsys.readouterr().err.replace("\n", " ")
    assert manifest(dst)["vocabs"]["spm_unigram_40"] == before


def test_warning_of_characters_that_training_does_not_have(src, dst, capsys):
    with open(os.path.join(src, "dev-clean", "119", "198", "119-198.trans.txt"), "a", encoding="utf8") as file:
        file.write("119-198-0009 CAFÉ\n")
    shutil.copy(chapter_file(src, "19-198-0000.flac"), os.path.join(src, "dev-clean/119/198/119-198-0009.flac"))
    assert run(src, dst, "--vocab", "bpe_10") == 0
    assert "dev-clean has characters that bpe_10 cannot write: É" in capsys.readouterr().err


CODES = "#version: 0.2\nT H\nTH E</w>\n"


@pytest.mark.parametrize("style", ["dict", "lines"])
def test_imported_bpe(src, dst, tmp_path, style):
    codes, vocab = str(tmp_path / "codes"), str(tmp_path / "vocab")
    letters = [chr(i) for i in range(ord("A"), ord("Z") + 1)]
    labels = ["<s>", "<unk>", "THE", "TH@@", *letters, *(letter + "@@" for letter in letters), "'", "'@@"]
    table = {label: i for i, label in enumerate(labels)}
    write_file(codes, CODES)
    text = repr({"</s>": 0, **table, "<s>": 0}) + "\n" if style == "dict" else "".join(f"{x}\n" for x in labels)
    write_file(vocab, text)
    assert run(src, dst, "--bpe-codes", codes, "--bpe-vocab", vocab, "--vocab-name", "old_bpe") == 0
    loaded = load_vocab(os.path.join(dst, "vocab", "old_bpe.json"))
    assert loaded.num_labels == len(labels)
    assert loaded.text_to_labels("THE THEN") == [2, 3, table["E@@"], table["N"]]
    assert loaded.labels_to_text(loaded.text_to_labels("IT'S THE FOX")) == "IT'S THE FOX"
    assert read_dataset(dst, ("dev-clean",), "old_bpe")


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ("__import__('os').mkdir('evil')", "label 0"),
        ("{'<s>': __import__('os').mkdir('evil')}", "not a Python dict"),
        ("{'<s>': 0, 'A': 2}", "each of them used"),
        ("{'<s>': 0, 'A': '1'}", "labels and their numbers"),
        ("{'<s>': 0, 'A': True}", "labels and their numbers"),
        ("{'<s>': 0,", "not a Python dict"),
        ("A\nB\n", "label 0"),
        ("<s>\nA\nA\n", "there twice"),
    ],
)
def test_bad_bpe_vocab(src, dst, tmp_path, capsys, monkeypatch, vocab, message):
    monkeypatch.chdir(tmp_path)
    write_file(str(tmp_path / "codes"), CODES)
    write_file(str(tmp_path / "vocab"), vocab)
    args = ("--parts", "dev-clean", "--bpe-codes", "codes", "--bpe-vocab", "vocab", "--vocab-name", "old")
    assert run(src, dst, *args) == 1
    assert message in capsys.readouterr().err
    assert not os.path.exists("evil") and not os.path.exists(os.path.join(dst, "vocab", "old.json"))


def test_bad_arguments(src, dst, tmp_path, capsys):
    write_file(str(tmp_path / "codes"), "one two three\n")
    write_file(str(tmp_path / "vocab"), "<s>\nA\n")
    codes, vocab = str(tmp_path / "codes"), str(tmp_path / "vocab")
    for args, message in (
        (("--vocab", "spm_10k"), "expected spm_unigram_N"),
        (("--bpe-codes", codes), "belong together"),
        (("--bpe-codes", codes, "--bpe-vocab", vocab, "--vocab-name", "x"), "line 1"),
        (("--bpe-codes", codes, "--bpe-vocab", vocab, "--vocab-name", "../x"), "only letters"),
        (("--lm-text", "missing.txt"), "missing.txt does not exist"),
        (("--vocab", "spm_unigram_10k"), "too high"),
    ):
        assert run(src, dst, *args) == 1
        assert message in capsys.readouterr().err
    assert run(str(tmp_path / "nothing"), dst) == 1
    assert "holds no part of LibriSpeech" in capsys.readouterr().err
    assert run(src, dst, "--corpus", "demo") == 1  # the folder holds another corpus
    assert "choose another folder" in capsys.readouterr().err


def test_vocab_names():
    assert parse_vocab_name("spm_unigram_10k") == ("spm_unigram", 10_000)
    assert parse_vocab_name("spm_bpe_80") == ("spm_bpe", 80)
    assert parse_vocab_name("bpe_1k") == ("bpe", 1000)


def test_lm_text(src, dst, tmp_path, capsys):
    plain, packed = str(tmp_path / "a.txt"), str(tmp_path / "texts" / "b.gz")
    write_file(plain, "one  two\n\nthree\n")
    write_file(packed, gzip.compress(b"four don't\n"))
    assert run(src, dst, "--lm-text", plain, str(tmp_path / "texts"), "--lm-name", "books") == 0
    entry = manifest(dst)["lm_texts"]["books"]
    with gzip.open(os.path.join(dst, entry["file"]), "rt", encoding="utf8") as file:
        assert file.read() == "ONE TWO\nTHREE\nFOUR DON'T\n"
    assert (entry["num_sentences"], entry["num_words"]) == (3, 5)
    write_file(plain, "changed\n")
    assert run(src, dst, "--lm-text", plain, "--lm-name", "books") == 0
    assert manifest(dst)["lm_texts"]["books"]["num_sentences"] == 1
    for content in (b"caf\xe9\n", b"\n\n"):
        write_file(plain, content)
        assert run(src, dst, "--lm-text", plain, "--lm-name", "bad") == 1
        assert plain in capsys.readouterr().err
    write_file(packed, gzip.compress(b"text\n" * 1000)[:30])
    assert run(src, dst, "--lm-text", packed, "--lm-name", "bad") == 1
    assert sorted(os.listdir(os.path.join(dst, "lm"))) == ["books.txt.gz"]


def _die(_job):
    os._exit(7)


def test_dead_worker_is_an_error():
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(parallel_map(_die, [(0, 0), (1, 1)], workers=2))


def test_as_a_command(src, dst, tmp_path):
    """From another folder, without PYTHONPATH; the exit code is seen."""
    tool = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools", "prepare_librispeech.py")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    write_file(chapter_file(src, "19-198-0000.flac"), b"broken")
    res = subprocess.run([sys.executable, tool, src, dst], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert res.returncode == 1
    assert "train-clean-100/19-198-0000: the audio file cannot be read" in res.stdout
    assert "Traceback" not in res.stderr
