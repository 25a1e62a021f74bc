"""Files of somebody else: nothing in them is executed, and nothing is written where it does not belong."""

from __future__ import annotations

import ast
import glob
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import zipfile

import pytest
import torch
from corpora import make_librispeech, write_file
from runs import REPO, SMALL_MODEL, run_config
from tiny_models import AED, LSTM_LM, save_model
from tool_runs import call_tool

from configs.base.corpus import CorpusOptions, open_corpus
from configs.base.options import OptionError
from configs.base.run import UNSAFE_LOAD, returnn_keys
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance
from recog.prepared_corpus import ListedUtterance, format_listing, is_inside, iter_listing
from recog.prior import load_log_prior
from recog.standalone import load_model
from recog.vocab import load_vocab
from rf_models.checkpoint import load_state_dict, read_model_info
from tools.cli import printable
from tools.prepare_librispeech import main as prepare_librispeech

# ---- the code


def source_files() -> list[str]:
    """:return: all code that users run"""
    found = [
        file
        for folder in ("configs", "rf_models", "recog", "tools")
        for file in glob.glob(os.path.join(REPO, folder, "**", "*"), recursive=True)
        if file.endswith((".py", ".config"))
    ]
    assert len(found) > 150
    return found


FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
FORBIDDEN_MODULES = set("pickle cPickle _pickle dill cloudpickle joblib marshal shelve yaml jsonpickle pty".split())
FORBIDDEN_ATTRIBUTES = {
    "os": {"system", "popen", "execv", "execve", "execvp", "spawnl", "spawnv"},
    "shutil": {"unpack_archive"},
    "tempfile": {"mktemp"},
}
# What a config file is: a program. The tool runs it as rnn.py would.
EXCEPTIONS = {("tools/show_config.py", "exec"), ("tools/show_config.py", "compile")}


def violations(filename: str, source: str) -> list[tuple[str, int]]:
    """:return: what could execute a file, or extract it to anywhere; and in which line"""
    found = []
    for node in ast.walk(ast.parse(source, filename)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [(module, node.lineno) for module in modules if module.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            found.append((node.id, node.lineno))
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else None
            if node.attr in FORBIDDEN_ATTRIBUTES.get(owner, ()) or node.attr == "extractall":
                found.append((f"{owner}.{node.attr}", node.lineno))
            elif node.attr in FORBIDDEN_NAMES - {"eval", "compile"} or (
                node.attr in FORBIDDEN_NAMES and owner == "builtins"
            ):
                found.append((f"{owner}.{node.attr}", node.lineno))
        if isinstance(node, ast.Call):
            keywords = {word.arg: word.value for word in node.keywords}
            name = ast.unparse(node.func)

            def is_set(key: str, value: bool, keywords: dict = keywords) -> bool:
                return isinstance(keywords.get(key), ast.Constant) and keywords[key].value is value

            if name.endswith("torch.load") and not is_set("weights_only", True):
                found.append(("torch.load without weights_only=True", node.lineno))
            if name in ("np.load", "numpy.load") and not is_set("allow_pickle", False):
                found.append(("numpy.load without allow_pickle=False", node.lineno))
            if "shell" in keywords and not is_set("shell", False):
                found.append(("shell=True", node.lineno))
            if name.endswith(".extract") and "archive" in name:
                found.append((name, node.lineno))
            if name == "jinja2.Environment" and not is_set("autoescape", True):
                found.append(("jinja2 without autoescape", node.lineno))
    return found


def test_nothing_is_evaluated_unpickled_or_extracted():
    found = set()
    for file in source_files():
        name = os.path.relpath(file, REPO)
        with open(file, encoding="utf8") as stream:
            found |= {(name, what, line) for what, line in violations(name, stream.read())}
    assert {(name, what) for name, what, _ in found} == EXCEPTIONS, found


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "x = exec",
        "import pickle",
        "from yaml import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "archive.extractall(folder)",
        "archive.extract(name)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "builtins.eval('1')",
        "jinja2.Environment()",
        "__import__('os')",
    ],
)
def test_the_scan_finds(source):
    assert violations("x.py", source)


def test_the_scan_leaves_alone():
    assert not violations(
        "x.py", "model.eval()\nre.compile('a')\nast.literal_eval(x)\ntorch.load(f, weights_only=True)"
    )


# ---- checkpoints


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.makedirs, (self.marker, 0o777, True)


@pytest.fixture
def marker(tmp_path):
    """:return: path that a hostile file would make; checked at the end"""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "the file was executed"


def evil_checkpoints(folder, marker) -> list[str]:
    """:return: files in the formats that torch.load knows"""
    os.makedirs(folder, exist_ok=True)
    content = {"model": {"x": torch.zeros(2), "y": Evil(marker)}, "epoch": 1, "step": 1, "optimizer": Evil(marker)}
    files = [os.path.join(folder, f"epoch.00{i}.pt") for i in (1, 2, 3)]
    torch.save(content, files[0])
    torch.save(content, files[1], _use_new_zipfile_serialization=False)
    with open(files[2], "wb") as file:
        pickle.dump(content, file)
    return files


def test_the_hostile_checkpoints_are_hostile(tmp_path):
    """Else the tests below would prove nothing."""
    for number, file in enumerate(evil_checkpoints(tmp_path / "m", tmp_path / "executed")):
        if number < 2:
            torch.load(file, weights_only=False)
        else:
            with open(file, "rb") as stream:
                pickle.load(stream)
        os.rmdir(tmp_path / "executed")


def test_checkpoints_are_not_executed(tmp_path, marker):
    for file in evil_checkpoints(tmp_path / "models", marker):
        for read in (load_state_dict, read_model_info):
            with pytest.raises(ValueError, match=re.escape(file)):
                read(file)
        with pytest.raises(ValueError, match=re.escape(file)):
            load_model(file, behavior_version=30)
        write_file(str(tmp_path / "a.wav"), b"")
        for words in (["average_checkpoints", tmp_path / "models", "--last", "1"],):
            res = call_tool(*words, cwd=tmp_path)
            assert res.returncode == 1 and "is not a readable PyTorch checkpoint" in res.stderr
        os.remove(file)


@pytest.mark.parametrize("what", ["no dict", "no model", "no tensor", "list"])
def test_safe_files_that_are_no_checkpoint(tmp_path, what):
    content = {"no dict": 3, "no model": {"x": 1}, "no tensor": {"model": {"x": [1, 2]}}, "list": {"model": [1]}}[what]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt is a PyTorch file, but no checkpoint"):
        load_state_dict(str(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    "info",
    [
        [1],
        {"kind": "aed_ctc"},
        {"kind": ["aed_ctc"], "options": {}, "num_labels": 5, "eos_index": 0},
        {"kind": "os", "options": {}, "num_labels": 5, "eos_index": 0},
        {"kind": "lstm_lm", "options": [], "num_labels": 5, "eos_index": 0},
        {"kind": "lstm_lm", "options": {"num_layers": "2"}, "num_labels": 5, "eos_index": 0},
        {"kind": "lstm_lm", "options": {"__class__": 1}, "num_labels": 5, "eos_index": 0},
        {"kind": "lstm_lm", "options": {}, "num_labels": 10**12, "eos_index": 0},
        {"kind": "lstm_lm", "options": {}, "num_labels": 5, "eos_index": 5},
        {"kind": "aed_ctc", "options": {"enc_num_heads": 0}, "num_labels": 5, "eos_index": 0},
    ],
)
def test_hostile_model_info(tmp_path, info):
    torch.save({"model": {"x": torch.zeros(2)}, "model_info": info}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: not the description of a model"):
        read_model_info(str(tmp_path / "x.pt"))


def test_returnn_loads_nothing_else(tmp_path, marker):
    """Model and optimiser of a training that is continued, and checkpoints to recognise with."""
    from returnn.torch.engine import _torch_load
    from returnn.torch.updater import Updater

    updater = Updater.__new__(Updater)
    updater._device = "cpu"
    for file in evil_checkpoints(tmp_path / "models", marker):
        for load in (lambda name: _torch_load(name, device="cpu"), updater.load_optimizer):
            with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
                load(file)


def test_unsafe_loading_cannot_be_switched_on(monkeypatch):
    for value in ("0", "", "no"):
        monkeypatch.setenv(UNSAFE_LOAD, value)
        returnn_keys({})
    monkeypatch.setenv(UNSAFE_LOAD, "1")
    with pytest.raises(OptionError, match="could run code: unset it"):
        returnn_keys({})


# ---- prepared corpora


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """:return: folder with a tiny corpus"""
    folder = tmp_path_factory.mktemp("untrusted")
    make_librispeech(str(folder / "source"), {"train": 7, "dev": 3}, seconds=1.2)
    args = [str(folder / "source"), str(folder / "data" / "demo"), "--workers", "1", "--corpus", "demo"]
    assert prepare_librispeech([*args, "--vocab", "spm_unigram_40", "--vocab", "bpe_20"]) == 0
    return folder


@pytest.fixture
def corpus(prepared, tmp_path):
    """:return: a copy of it, to be changed"""
    shutil.copytree(prepared / "data" / "demo", tmp_path / "data" / "demo")
    return tmp_path / "data" / "demo"


def open_it(corpus, vocab="spm_unigram_40"):
    opts = CorpusOptions(data_dir=str(corpus), vocab=vocab)
    return open_corpus("demo", opts, parts=("train", "dev"), prepare_command="make data")


def change_json(filename, **changes):
    content = json.loads(filename.read_text())
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = content
        for key in keys:
            place = place[key]
        place[last] = value
    filename.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("parts__dev__file", "../dev.zip"),
        ("parts__dev__file", "/etc/dev.zip"),
        ("parts__dev__file", "dev.txt.gz"),
        ("parts__dev__file", "a\0.zip"),
        ("parts__dev__file", 3),
        ("parts__dev__num_seqs", "x"),
        ("parts__dev", []),
        ("parts__../x", {"file": "dev.zip"}),
        ("lm_texts__../../x", {"file": "lm/x.txt.gz"}),
        ("lm_texts__x", {"file": "../../x.txt.gz"}),
        ("parts", 3),
        ("format", "1"),
    ],
)
def test_manifests_stay_in_their_folder(corpus, path, value):
    open_it(corpus)
    change_json(corpus / "corpus.json", **{path: value})
    with pytest.raises(OptionError, match=r"corpus\.json is not a manifest"):
        open_it(corpus)
    source = str(corpus.parent.parent / "no source")
    make_librispeech(source, {"train": 1}, seconds=0.1)
    res = call_tool("prepare_librispeech", source, corpus, "--corpus", "demo", "--workers", "1", cwd=corpus)
    assert res.returncode == 1 and "corpus.json" in res.stderr and "it is damaged" in res.stderr


def test_labels_are_not_evaluated(corpus, marker):
    labels = corpus / "vocab" / "bpe_20.vocab"
    names = labels.read_text().splitlines()
    labels.write_text(repr({name: i for i, name in enumerate(names)}))  # as older setups have it
    assert load_vocab(str(corpus / "vocab" / "bpe_20.json")).text_to_labels("A")
    for text in (
        f"{{'<s>': __import__('os').mkdir({str(marker)!r})}}",
        f"{{**{{}}, 'x': open({str(marker)!r}, 'w')}}",
        f"{{'a': 1}} if __import__('os').mkdir({str(marker)!r}) else 2",
        "{" * 10_000,
        "{'a': 9**9**9**9}",
    ):
        labels.write_text(text)
        with pytest.raises(OptionError, match=r"bpe_20\.vocab: .* RETURNN would execute"):
            open_it(corpus, "bpe_20")
    shutil.move(labels, corpus / "vocab" / "x.pkl")
    (corpus / "vocab" / "x.pkl").write_bytes(pickle.dumps(Evil(marker)))
    change_json(corpus / "vocab" / "bpe_20.json", files__vocab="x.pkl")
    with pytest.raises(OptionError, match="because of its ending"):
        open_it(corpus, "bpe_20")


@pytest.mark.parametrize("name", ["/etc/passwd", "../../corpus.json", "a/../../x", "", "x\0", 3])
def test_vocabularies_stay_in_their_folder(corpus, name):
    change_json(corpus / "vocab" / "spm_unigram_40.json", files__model=name)
    with pytest.raises(OptionError, match="expected the name of a file in the same folder"):
        open_it(corpus)


def test_damaged_sentencepiece_model(corpus):
    (corpus / "vocab" / "spm_unigram_40.model").write_bytes(b"\x0a\xff\xff\xff\xff\x0fgarbage")
    with pytest.raises(ValueError, match=r"vocabulary spm_unigram_40: .*spm_unigram_40\.model cannot be used"):
        load_vocab(str(corpus / "vocab" / "spm_unigram_40.json")).text_to_labels("A")


def rewrite_zip(filename, listing=None, extra=()):
    """Replaces the listing of a part, and adds members."""
    with zipfile.ZipFile(filename) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    if listing is not None:
        members[os.path.basename(filename).replace(".zip", ".txt")] = listing
    members.update(extra)
    with zipfile.ZipFile(filename, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (b"[\n__import__('os').mkdir('executed'),\n]\n", "not a Python literal"),
        (b"__import__('os').mkdir('executed')", "not a Python literal"),
        (b"[" * 100_000, "not a Python literal"),  # ends the process in RETURNN's parser
        (b"[\n" + b"[" * 100_000 + b"\n]\n", "not a Python literal"),
        (
            b"[\n{'text': 'A', 'duration': 1.0, 'file': '../../x.flac', 'seq_name': 'dev/1'},\n]\n",
            "because of the file",
        ),
        (b"[\n{'text': 'A', 'duration': -1.0, 'file': 'x', 'seq_name': 'dev/1'},\n]\n", "expected seconds"),
        (b"[\n{'text': 3, 'duration': 1.0, 'file': 'x', 'seq_name': 'dev/1'},\n]\n", "text 3: expected a text"),
        (b"[\n3,\n]\n", "expected a dict"),
        (b"{}", "expected a list"),
        (b"[\n", "cut off"),
        (b"\xff\xfe", "no readable list"),
    ],
)
def test_listings_are_parsed(corpus, listing, message, marker, monkeypatch):
    monkeypatch.chdir(marker.parent)
    rewrite_zip(corpus / "dev.zip", listing)
    with pytest.raises(OptionError, match=message) as info:
        open_it(corpus)
    assert "dev.zip" in str(info.value) and "make data" in str(info.value)


def test_listings_of_other_tools(corpus):
    """All in one line, or an utterance over several: as Python's repr and pprint write them."""
    entries = [{"text": "a 'b'", "duration": 1.5, "file": f"{i}.ogg", "seq_name": f"dev/{i}"} for i in range(3)]
    extra = [(f"dev/{i}.ogg", b"x") for i in range(3)]
    for text in (repr(entries), "[\n" + ",\n".join(repr(e).replace(", ", ",\n") for e in entries) + "]\n"):
        rewrite_zip(corpus / "dev.zip", text.encode(), extra)
        assert len(list(iter_listing(str(corpus / "dev.zip")))) == 3


@pytest.mark.parametrize("name", ["../evil", "/evil", "dev/../../evil", "..\\evil"])
def test_zip_members_elsewhere(corpus, name):
    rewrite_zip(corpus / "dev.zip", extra=[(name, b"x")])
    with pytest.raises(OptionError, match="because of the place of its member"):
        open_it(corpus)


def test_zip_bomb(corpus):
    """A member that says how large it would be is not unpacked; one that lies about it ends where it said."""
    filename = corpus / "dev.zip"
    with zipfile.ZipFile(filename, "a", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(zipfile.ZipInfo("dev/bomb.flac"), "w", force_zip64=True) as member:
            member.write(b"x")
    content = bytearray(filename.read_bytes())
    at = content.rindex(b"dev/bomb.flac") - 46  # the entry in the central directory
    assert content[at : at + 4] == b"PK\1\2"
    content[at + 24 : at + 28] = (2**31).to_bytes(4, "little")
    filename.write_bytes(content)
    with pytest.raises(OptionError, match=r"'dev/bomb\.flac' has 2147483648 bytes"):
        open_it(corpus)


def test_is_inside():
    assert all(map(is_inside, ("a", "a/b.zip", "a b", "...", "a..b", "ä")))
    assert not any(
        map(is_inside, ("", "/a", "..", "a/..", "../a", "a/../../b", "./a", "a//b", "a\0", "..\\a", "a\\..\\b"))
    )


def test_listing_as_returnn_reads_it():
    """RETURNN has a parser of its own, which does not know all of Python, such as 6.25e-05."""
    from returnn.util.literal_py_to_pickle import literal_eval

    texts = [
        "",
        "it's",
        '"',
        "'\"\\",
        "ä ß 東京 \U0001f600",
        "\x00\x07\x1b\x7f\x85\xa0\u2028\ufeff",
        "\t\r\n\v\f",
        "\\n",
    ]
    durations = [0.0, 1 / 16000, 1e-300, 35.24, 123456.789]
    entries = [
        ListedUtterance(text, duration, "x.flac", f"dev/{number}")
        for number, text in enumerate(texts)
        for duration in durations
    ]
    content = format_listing(entries)
    assert content.count(b"\n") == len(entries) + 2
    for read in (literal_eval, lambda raw: ast.literal_eval(raw.decode("utf8"))):
        got = read(content)
        assert [(e["text"], e["file"], e["seq_name"]) for e in got] == [(e.text, e.file, e.seq_name) for e in entries]
        assert all(abs(e["duration"] - entry.duration) <= 1e-9 for e, entry in zip(got, entries, strict=True))
        assert all(isinstance(e["duration"], float) for e in got)
    for bad in ({"text": "\ud800"}, {"duration": float("nan")}, {"duration": 3}, {"file": "../x"}, {"seq_name": ""}):
        with pytest.raises(ValueError):
            format_listing([ListedUtterance(**{**vars(entries[0]), **bad})])


# ---- learning rates, priors


def test_training_does_not_execute_learning_rates(prepared, tmp_path, marker):
    """The whole way: RETURNN evaluates this file when a training continues. And hostile checkpoints."""
    options = {
        "batch_size": 100_000,
        **SMALL_MODEL,
        "data_dir": prepared / "data",
        "vocab": "spm_unigram_40",
        "num_workers": 0,
        "num_epochs": 2,
    }
    folder = tmp_path / "output" / "demo_train"
    write_file(
        str(folder / "learning_rates"),
        f"{{1: EpochData(learningRate=0.1, error={{'x': __import__('os').mkdir({str(marker)!r})}})}}\n",
    )
    res = run_config("demo_train", tmp_path, ok=False, **options)
    assert res.returncode != 0 and "learning_rates: not a file of learning rates" in res.stderr
    write_file(
        str(folder / "learning_rates"),
        "{1: EpochData(learningRate=0.1, error={'dev_loss_ce': 1.5, 'train_loss_ce': 1.5})}\n",
    )
    evil = evil_checkpoints(tmp_path / "evil", marker)[0]
    for name in ("epoch.001.pt", "epoch.001.opt.pt"):
        shutil.copy(evil, folder / "models" / name)
    res = run_config("demo_train", tmp_path, ok=False, **options)
    assert res.returncode != 0 and "Weights only load failed" in res.stdout + res.stderr
    assert not (folder / "models" / "epoch.002.pt").exists()


def test_prior_is_text(tmp_path, marker):
    for content in (
        pickle.dumps(Evil(marker)),
        b"# ctc-prior domain=log num_classes=2\n__import__('os').mkdir('x')\n0\n",
        b"# ctc-prior domain=log num_classes=" + b"9" * 10_000 + b"\n",
        b"\xff",
    ):
        (tmp_path / "p.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"p\.txt"):
            load_log_prior(str(tmp_path / "p.txt"), num_classes=2)


# ---- archives of the source


def test_tar_member_that_would_fill_the_memory(tmp_path):
    """It is 4 TiB according to its header; nothing of it is read."""
    source = tmp_path / "source"
    source.mkdir()
    member = tarfile.TarInfo("LibriSpeech/dev-clean/1/2/1-2-0000.flac")
    member.size = 2**42
    (source / "dev-clean.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    res = call_tool("prepare_librispeech", source, tmp_path / "dst", "--workers", "1", cwd=tmp_path)
    assert res.returncode == 1 and "1-2-0000.flac' has 4398046511104 bytes" in res.stderr


def test_symlink_in_tar_is_not_followed(tmp_path):
    """The classic: a link to elsewhere, then a file through it."""
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "dev-clean.tar", "w") as archive:
        link = tarfile.TarInfo("LibriSpeech/dev-clean/1")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
        archive.addfile(link)
        file = tarfile.TarInfo("LibriSpeech/dev-clean/1/x.flac")
        file.size = 3
        archive.addfile(file, io.BytesIO(b"abc"))
    (tmp_path / "elsewhere").mkdir()
    before = sorted(map(str, tmp_path.rglob("*")))
    res = call_tool("prepare_librispeech", source, tmp_path / "dst", "--workers", "1", cwd=tmp_path)
    assert res.returncode == 1 and "refused, because of its member 'LibriSpeech/dev-clean/1'" in res.stderr
    after = {path for path in map(str, tmp_path.rglob("*")) if not path.startswith(str(tmp_path / "dst"))}
    assert sorted(after) == before


def test_audio_that_promises_too_much(tmp_path):
    """A FLAC header has room for 2**36 samples; they would be allocated before the first is read."""
    make_librispeech(str(tmp_path / "source"), {"dev-clean": 2}, seconds=0.2)
    file = sorted(glob.glob(str(tmp_path / "source" / "**" / "*.flac"), recursive=True))[0]
    with open(file, "rb") as stream:
        content = bytearray(stream.read())
    content[21] |= 0x0F  # the number of samples: 4 bits here, 32 behind
    content[22:26] = b"\xff" * 4
    write_file(file, bytes(content))
    res = call_tool("prepare_librispeech", tmp_path / "source", tmp_path / "dst", "--workers", "1", cwd=tmp_path)
    assert res.returncode == 1 and "19-198-0000: the audio file cannot be read (its header promises 68719" in res.stdout


# ---- texts and tags

TAGS = (
    "../../evil",
    "a b/1",
    "a_b/1",
    "/evil/x",
    "dev/../../../x",
    "dev/\x1b]0;owned\x07",
    "a\nb/c",
    "dev/a b\n1 1 0 1 x",
    "..",
    ";; x",
    "é/\x9b31m",
)


def write_hostile_nbest(filename, tags=TAGS):
    with NBestWriter(str(filename), NBestHeader("label_sync", {"att": 1.0})) as writer:
        for tag in tags:
            hyps = [Hypothesis([1], f"\x1b[2J one\n{tag}", -1.0, {"att": -1.0})]
            writer.write(Utterance(tag, 2.0, 20, "one (two) ;; \x07\n three", hyps, error=f"bad\x1b[31m {tag}"))


def files_below(folder) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.is_file()}


def test_tags_are_no_file_names(tmp_path):
    place = tmp_path / "a" / "b" / "c"
    place.mkdir(parents=True)
    write_hostile_nbest(place / "nbest.jsonl")
    res = call_tool("score", "nbest.jsonl", "--trn", "trn", "--stm", "x.stm", "--ctm", "x.ctm", cwd=place)
    assert res.returncode == 0, res.stderr
    assert {os.path.dirname(path) for path in files_below(tmp_path)} == {str(place), str(place / "trn")}
    parts = {tag.partition("/")[0] if "/" in tag else "" for tag in TAGS}
    assert len(os.listdir(place / "trn")) == 2 * len(parts)
    for name in os.listdir(place / "trn"):
        assert re.fullmatch(r"[\w.%-]+", name) and not name.startswith(".")
    # One line for each utterance or word, whatever is in its name.
    stm = (place / "x.stm").read_text().splitlines()
    assert len(stm) == len(TAGS) and all(line.split()[1:2] == ["1"] and line[:1] != ";" for line in stm)
    ctm = (place / "x.ctm").read_text().splitlines()
    assert all(len(line.split()) == 5 for line in ctm[1:])


def test_terminal_controls_are_shown_not_sent(tmp_path):
    assert printable("a\x1b[2J\x07\r\x9b1\u202e\u2066\ud800 é\t東\n") == (
        "a\\x1b[2J\\x07\\r\\x9b1\\u202e\\u2066\\ud800 é\t東\n"
    )
    write_hostile_nbest(tmp_path / "a.jsonl")
    write_hostile_nbest(tmp_path / "b.jsonl")
    for words in (
        ["score", "a.jsonl", "--alignments"],
        ["compare_runs", "a.jsonl", "b.jsonl", "--differences", "5"],
        ["tune_scales", "a.jsonl", "--parts", "dev", "--bootstrap", "5"],
        ["search_errors", "a.jsonl", "b.jsonl", "--list", "5"],
        ["rescore", "a.jsonl", "--scales", "att=2", "--out", "c.jsonl"],
        ["plot_alignment", "a.jsonl", "\x1b[2J"],
        ["score", "no\x1bfile"],
    ):
        res = call_tool(*words, cwd=tmp_path)
        assert "Traceback" not in res.stderr and (res.stdout or res.stderr)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", res.stdout + res.stderr), words
    assert "\\x1b[2j" in call_tool("score", "a.jsonl", "--alignments", cwd=tmp_path).stdout


def test_external_model_of_a_stranger(tmp_path, prepared):
    """A checkpoint that is safe, but another model than it says, is refused by what is in it."""
    vocab = load_vocab(str(prepared / "data" / "demo" / "vocab" / "spm_unigram_40.json"))
    file = save_model(str(tmp_path / "lm.pt"), LSTM_LM, num_labels=vocab.num_labels, eos_index=0)
    content = torch.load(file, weights_only=True)
    content["model_info"] = {
        "kind": "aed_ctc",
        "options": {**vars(AED)},
        "num_labels": vocab.num_labels,
        "eos_index": 0,
    }
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"lm\.pt does not fit the model"):
        load_model(file, behavior_version=30)
