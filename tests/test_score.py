"""The scoring tool as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def score(*args, cwd):
    """:return: finished process of tools/score.py"""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, os.path.join(ROOT, "tools", "score.py"), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def write_run(folder, name, texts, *, search="ctc_greedy", refs=None, duration=2.0, filename="nbest.jsonl"):
    """:param texts: seq tag -> text of the best hypothesis, None: the search failed"""
    (folder / name).mkdir(exist_ok=True)
    refs = REFS if refs is None else refs
    with NBestWriter(str(folder / name / filename), NBestHeader(search, {"ctc": 1.0})) as writer:
        for tag, text in texts.items():
            hyps = [] if text is None else [Hypothesis([1], text, -1.0, {"ctc": -1.0})]
            error = "out of memory" if text is None else None
            writer.write(Utterance(tag, duration, 10, refs.get(tag), hyps, error))
    return os.path.join(name, filename)


REFS = {"dev/sp1-1": "turn LEFT now", "dev/sp1-2": "stop", "test/sp2_1": "it 's <unk> a test", "test/sp3-1": "go on"}
GOOD = {"test/sp3-1": "go on", "dev/sp1-1": "turn left now", "dev/sp1-2": "stop", "test/sp2_1": "it's a test"}
WORSE = {**GOOD, "dev/sp1-1": "turn lift now please", "test/sp3-1": None}


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path, "demo_recog_ctc", WORSE),
        write_run(tmp_path, "demo_recog_timesync", GOOD, search="time_sync", filename="nbest.jsonl.gz"),
    ]


def test_table(tmp_path, runs):
    result = score(*runs, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == "run search part utts words WER % sub ins del SER %".split()
    assert lines[2:8] == [
        "demo_recog_ctc ctc_greedy dev 2 4 50.00 1 1 0 50.00".split(),
        "demo_recog_ctc ctc_greedy test 2 5 40.00 0 0 2 50.00".split(),
        "demo_recog_ctc ctc_greedy total 4 9 44.44 1 1 2 50.00".split(),
        "demo_recog_timesync time_sync dev 2 4 0.00 0 0 0 0.00".split(),
        "demo_recog_timesync time_sync test 2 5 0.00 0 0 0 0.00".split(),
        "demo_recog_timesync time_sync total 4 9 0.00 0 0 0 0.00".split(),
    ]
    (note,) = result.stdout.splitlines()[8:]
    assert note.startswith("demo_recog_ctc: in 1 utterance(s) the search failed")


def test_markdown(tmp_path, runs):
    result = score("--markdown", runs[1], cwd=tmp_path)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 5 and all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert set(lines[1]) == set("|-: ")


def test_json(tmp_path, runs):
    assert score(*runs, "--json", "wer.json", cwd=tmp_path).returncode == 0
    record = json.loads((tmp_path / "wer.json").read_text())
    assert [(run["run"], run["file"]) for run in record["runs"]] == [
        ("demo_recog_ctc", runs[0]),
        ("demo_recog_timesync", runs[1]),
    ]
    test = record["runs"][0]["parts"]["test"]
    assert test == {
        "num_utts": 2,
        "num_ref_words": 5,
        "num_sub": 0,
        "num_ins": 0,
        "num_del": 2,
        "num_utts_with_error": 1,
        "num_failed": 1,
        "num_no_ref": 0,
        "num_errors": 2,
        "wer_percent": 40.0,
        "ser_percent": 50.0,
    }
    assert record["runs"][0]["total"]["num_errors"] == 4
    assert sorted(os.listdir(tmp_path)) == ["demo_recog_ctc", "demo_recog_timesync", "wer.json"]


def test_trn(tmp_path, runs):
    assert score(*runs, "--trn", "a/trn", cwd=tmp_path).returncode == 0
    files = {path.name: path.read_text() for path in (tmp_path / "a" / "trn").iterdir()}
    assert len(files) == 8
    assert files["demo_recog_ctc.test.ref.trn"] == "it's a test (sp2_1)\ngo on (sp3-1)\n"
    assert files["demo_recog_ctc.test.hyp.trn"] == "it's a test (sp2_1)\n (sp3-1)\n"
    assert files["demo_recog_timesync.dev.hyp.trn"] == "turn left now (sp1-1)\nstop (sp1-2)\n"


def test_stm_and_ctm(tmp_path, runs):
    assert score(runs[0], "--stm", "ref.stm", "--ctm", "hyp.ctm", cwd=tmp_path).returncode == 0
    assert (tmp_path / "ref.stm").read_text().splitlines() == [
        "dev/sp1-1 1 sp1 0.000 2.000 turn left now",
        "dev/sp1-2 1 sp1 0.000 2.000 stop",
        "test/sp2_1 1 sp2 0.000 2.000 it's a test",
        "test/sp3-1 1 sp3 0.000 2.000 go on",
    ]
    comment, *lines = (tmp_path / "hyp.ctm").read_text().splitlines()
    assert comment.startswith(";;") and "not measured" in comment
    assert lines[:5] == [
        "dev/sp1-1 1 0.000 0.500 turn",
        "dev/sp1-1 1 0.500 0.500 lift",
        "dev/sp1-1 1 1.000 0.500 now",
        "dev/sp1-1 1 1.500 0.500 please",
        "dev/sp1-2 1 0.000 2.000 stop",
    ]
    assert not any("sp3" in line for line in lines)
    assert score(*runs, "--ctm", "x.ctm", cwd=tmp_path).returncode == 2
    no_duration = write_run(tmp_path, "no_duration", GOOD, duration=None)
    result = score(no_duration, "--stm", "x.stm", cwd=tmp_path)
    assert result.returncode == 1 and "needs durations, but utterance 'dev/sp1-1'" in result.stderr
    assert not (tmp_path / "x.stm").exists() and not (tmp_path / "x.stm.tmp").exists()


def test_alignments(tmp_path, runs):
    result = score(*runs, "--alignments", cwd=tmp_path)
    assert result.returncode == 0
    assert "dev/sp1-1: 2 error(s), 3 word(s)\nREF: turn left now ******\nHYP: turn lift now please\n" in result.stdout
    assert "test/sp3-1: 2 error(s), 2 word(s), search failed: out of memory\nREF: go on\nHYP: ** **\n" in result.stdout
    table = score(*runs, cwd=tmp_path).stdout
    assert result.stdout.endswith(table)
    to_file = score(*runs, "--alignments", "ali.txt", cwd=tmp_path)
    assert to_file.stdout == table
    assert (tmp_path / "ali.txt").read_text() + table == result.stdout


def test_an_nbest_file_is_not_overwritten(tmp_path, runs):
    before = (tmp_path / runs[0]).read_bytes()
    result = score("--alignments", runs[0], runs[1], cwd=tmp_path)
    assert result.returncode == 1 and "would be overwritten" in result.stderr
    assert (tmp_path / runs[0]).read_bytes() == before


def test_normaliser_options(tmp_path, runs):
    cells = score(runs[1], "--keep-case", "--keep-unk", cwd=tmp_path).stdout.splitlines()[4].split()
    assert cells[2:] == "total 4 10 20.00 1 0 1 50.00".split()


def test_missing_references(tmp_path, runs):
    refs = {tag: ref for tag, ref in REFS.items() if tag != "test/sp3-1"}
    some = write_run(tmp_path, "some", GOOD, refs=refs)
    result = score(some, runs[1], cwd=tmp_path)
    assert result.returncode == 0
    assert "some: 1 utterance(s) without a reference are left out." in result.stdout
    assert "some time" not in result.stdout and "missing: 1 in some" in result.stderr
    none = write_run(tmp_path, "none", GOOD, refs={})
    result = score(none, cwd=tmp_path)
    assert result.returncode == 1 and "no utterance has a reference" in result.stderr


def test_different_utterances_are_noted(tmp_path, runs):
    subset = write_run(tmp_path, "subset", {tag: text for tag, text in GOOD.items() if tag != "dev/sp1-2"})
    result = score(subset, runs[1], cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr == (
        "note: part dev: the runs have different utterances (missing: 1 in subset): do not compare these rows\n"
    )


def test_mixed_references(tmp_path, runs):
    same = write_run(tmp_path, "same", GOOD, refs={**REFS, "dev/sp1-1": "TURN  left now"})
    assert score(same, runs[0], cwd=tmp_path).returncode == 0
    other = write_run(tmp_path, "other", GOOD, refs={**REFS, "dev/sp1-1": "turn right now"})
    result = score(runs[0], other, cwd=tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: mixed references: utterance 'dev/sp1-1' has 'turn left now' in")


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(os.path.join(folder, write_run(tmp_path / folder, "run", GOOD)))
    lines = score(*files, cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [files[0]] * 3 + [files[1]] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "n.jsonl does not exist"),
        (b"", "n.jsonl, line 1: the file is empty"),
        (b"{'a': [(0.0, 'x')]}\n", "n.jsonl, line 1: not JSON"),
        (b'{"nbest": 1, "search": "x", "scales": {}}\n', "n.jsonl: has a header, but no utterances"),
        (b'{"nbest": 1, "search": "x", "scales": {}}\n{"seq_tag": "a/', "n.jsonl, line 2: the file is cut off"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    if content is not None:
        (tmp_path / "n.jsonl").write_bytes(content)
    result = score("n.jsonl", cwd=tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(f"error: {message}") and len(result.stderr.splitlines()) == 1


def test_wrong_calls(tmp_path, runs):
    result = score("demo_recog_ctc", cwd=tmp_path)
    assert result.returncode == 1 and "demo_recog_ctc is a folder: give the n-best file in it" in result.stderr
    result = score(runs[0], "./" + runs[0], cwd=tmp_path)
    assert result.returncode == 1 and "is given twice" in result.stderr
    assert score(cwd=tmp_path).returncode == 2
    result = score(runs[0], "--json", "missing/x.json", cwd=tmp_path)
    assert result.returncode == 1 and result.stderr == "error: missing/x.json.tmp: No such file or directory\n"
    assert "no time stamps" in score("--help", cwd=tmp_path).stdout.replace("\n", " ").replace("  ", "")
