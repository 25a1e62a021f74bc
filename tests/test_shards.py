"""Recognition in several processes: the plan of the shards, their merging, and whole runs against one process."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import sys
from dataclasses import replace

import pytest
from fork_server import fork_config
from runs import config_file, run_command
from tiny_setup import VOCAB, make_tiny_setup
from tool_runs import call_tool

from configs.base.options import OptionError
from configs.base.recog import RecogOptions
from configs.base.shards import merge_when_complete, shard_of_this_process
from recog.batches import Utt, fingerprint, plan_batches, share_out
from recog.nbest import Hypothesis, NBestHeader, Utterance, load_nbest
from recog.results import write_results
from recog.shards import Shard, ShardError, merge_shards

# ---- plan


def utterances(number: int, seed: int) -> list[Utt]:
    rng = random.Random(seed)
    lengths = sorted((rng.randint(1, 1000) for _ in range(number)), reverse=True)
    return [Utt(f"dev/{i}", length) for i, length in enumerate(lengths)]


@pytest.mark.parametrize("seed", range(20))
def test_shares(seed):
    """Each batch is in one shard, in the order of the plan; no shard has more than a batch more audio than another."""
    utts = utterances(200, seed)
    batches = plan_batches(utts, batch_size=3000, max_seqs=7)
    assert [utt for batch in batches for utt in batch.utts] == utts
    for batch in batches:
        assert 1 <= len(batch.utts) <= 7
        assert len(batch.utts) == 1 or len(batch.utts) * batch.utts[0].num_samples <= 3000
    for num_shards in (1, 2, 3, len(batches)):
        shares = share_out(batches, num_shards)
        assert len(shares) == num_shards and all(shares)
        places = [[batches.index(batch) for batch in share] for share in shares]
        assert all(place == sorted(place) for place in places)
        assert sorted(i for place in places for i in place) == list(range(len(batches)))
        loads = [sum(batch.num_samples for batch in share) for share in shares]
        assert max(loads) - min(loads) <= max(batch.num_samples for batch in batches)
        # A shard has the same batches if RETURNN's rule is applied to its utterances alone.
        for share in shares:
            alone = [utt for batch in share for utt in batch.utts]
            assert plan_batches(alone, batch_size=3000, max_seqs=7) == share


def test_plan_is_what_returnn_does():
    import numpy
    from returnn.torch.data.pipeline import BatchingIterDataPipe

    utts = utterances(300, seed=1)
    random.Random(2).shuffle(utts)  # also where the order is not by length
    data = [{"data": numpy.zeros(utt.num_samples), "seq_tag": numpy.array(utt.seq_tag)} for utt in utts]
    for max_seqs in (5, 100):
        theirs = BatchingIterDataPipe(data, batch_size={"data": 3000}, max_seqs=max_seqs)
        tags = [[str(entry["seq_tag"]) for entry in batch] for batch in theirs]
        mine = plan_batches(utts, batch_size=3000, max_seqs=max_seqs)
        assert [[utt.seq_tag for utt in batch.utts] for batch in mine] == tags


def test_fingerprint_depends_on_the_utterances_and_the_batches():
    utts = utterances(20, seed=1)
    plans = [
        plan_batches(utts, batch_size=3000, max_seqs=7),
        plan_batches(utts, batch_size=3000, max_seqs=2),
        plan_batches(utts[:-1], batch_size=3000, max_seqs=7),
        plan_batches([*utts[:-1], Utt(utts[-1].seq_tag, utts[-1].num_samples + 1)], batch_size=3000, max_seqs=7),
    ]
    assert len(set(map(fingerprint, plans))) == 4
    assert fingerprint(plans[0]) == fingerprint(plan_batches(utts, batch_size=3000, max_seqs=7))


@pytest.mark.parametrize("text", ["5/4", "0/4", "1", "1/0", "-1/2", "1/2/3", "a/b", "", "1.0/2"])
def test_wrong_shards(text):
    with pytest.raises(ValueError, match=r"shard = .*: expected i/N with i of 1 \.\.\. N"):
        RecogOptions(shard=text)


def test_option_or_torchrun(monkeypatch):
    assert shard_of_this_process(None) is None
    assert shard_of_this_process("2/3") == Shard(2, 3)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert shard_of_this_process(None) == Shard(4, 4)
    with pytest.raises(OptionError, match="shard = 2/3, but torchrun has started 4 processes"):
        shard_of_this_process("2/3")


# ---- merging


def write_shards(folder, *, count: int = 3, failed: tuple[int, ...] = ()) -> None:
    """Writes finished shards with two utterances each."""
    for index in range(1, count + 1):
        shard = Shard(index, count)
        its = shard.folder(str(folder))
        os.makedirs(its)
        hyp = Hypothesis([1, 2], "a b", -1.5, {"att": -1.5})
        utts = [Utterance(f"dev/{i}{index}", 1.0, 9, "a b", [hyp]) for i in "ba"]
        if index in failed:
            utts = [replace(utt, hyps=[], error="broken") for utt in utts]
        header = NBestHeader("label_sync", {"att": 1.0}, options={"beam_size": 4, "shard": str(shard)})
        seconds = {"audio": 2.0, "encoder": 0.5, "search": 0.25}
        write_results(its, header=header, utterances=sorted(utts, key=lambda utt: utt.seq_tag), seconds=seconds)
        record = {"beam_size": 4, "shard": str(shard), "data_dir": f"data{index}"}
        record["plan"] = {"num_utterances": 2 * count, "fingerprint": "x"}
        write_record(its, record)


def write_record(folder: str, record: dict) -> None:
    with open(os.path.join(folder, "options.json"), "w", encoding="utf8") as file:
        json.dump(record, file)


def change_record(folder: str, **changes) -> None:
    with open(os.path.join(folder, "options.json"), encoding="utf8") as file:
        record = json.load(file)
    write_record(folder, record | changes)


def test_merge(tmp_path):
    write_shards(tmp_path)
    done = call_tool("merge_nbest", tmp_path, cwd=tmp_path)
    assert done.returncode == 0 and "3 shards: n-best lists in" in done.stdout
    header, utts = load_nbest(str(tmp_path / "nbest.jsonl"))
    assert header == NBestHeader("label_sync", {"att": 1.0}, options={"beam_size": 4, "shard": None})
    assert [utt.seq_tag for utt in utts] == [f"dev/{i}{index}" for i in "ab" for index in (1, 2, 3)]
    wer = json.loads((tmp_path / "wer.json").read_text())
    assert wer["total"]["num_utts"] == 6 and wer["time"]["audio_seconds"] == 6.0
    assert wer["time"]["total_seconds"] == pytest.approx(3 * 0.75)
    assert json.loads((tmp_path / "options.json").read_text()) == {"beam_size": 4, "data_dir": "data1", "shard": None}
    assert sorted(os.listdir(tmp_path)) == ["nbest.jsonl", "options.json", "shards", "wer.json", "wer.txt"]

    # Again, as a second process may do at the same time: the same bytes.
    before = (tmp_path / "nbest.jsonl").read_bytes()
    assert call_tool("merge_nbest", tmp_path, cwd=tmp_path).returncode == 0
    assert (tmp_path / "nbest.jsonl").read_bytes() == before
    change_record(str(tmp_path), beam_size=8)
    done = call_tool("merge_nbest", tmp_path, cwd=tmp_path)
    assert done.returncode == 1 and "is of another run (there and in the shards: beam_size: 8 and 4)" in done.stderr
    assert call_tool("merge_nbest", tmp_path, "--overwrite", cwd=tmp_path).returncode == 0


def test_a_shard_may_fail_but_not_all(tmp_path):
    write_shards(tmp_path / "one", failed=(2,))
    assert call_tool("merge_nbest", tmp_path / "one", cwd=tmp_path).returncode == 0
    write_shards(tmp_path / "all", failed=(1, 2, 3))
    done = call_tool("merge_nbest", tmp_path / "all", cwd=tmp_path)
    assert done.returncode == 1 and "all 6 utterances failed" in done.stderr
    assert not (tmp_path / "all" / "nbest.jsonl").exists()
    with pytest.raises(SystemExit, match="error: all 6 utterances failed"):
        merge_when_complete(Shard(3, 3), str(tmp_path / "all"))


def remove_nbest(folder):
    os.remove(os.path.join(folder, "nbest.jsonl"))


def cut_nbest(folder):
    filename = os.path.join(folder, "nbest.jsonl")
    with open(filename, "rb+") as file:
        file.truncate(os.path.getsize(filename) - 5)


def copy_of_first(folder):
    shutil.copy(os.path.join(os.path.dirname(folder), "1-of-3", "nbest.jsonl"), folder)


def other_header(folder):
    filename = os.path.join(folder, "nbest.jsonl")
    with open(filename, encoding="utf8") as file:
        content = file.read()
    with open(filename, "w", encoding="utf8") as file:
        file.write(content.replace('"att": 1.0', '"att": 0.5', 1))


def more_utterances(folder):
    for index in (1, 2, 3):
        change_record(
            os.path.join(os.path.dirname(folder), f"{index}-of-3"), plan={"num_utterances": 7, "fingerprint": ""}
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_nbest, "1 of 3 shards are not finished: 2/3. Run them with ++shard i/3."),
        (shutil.rmtree, "1 of 3 shards are not finished: 2/3"),
        (cut_nbest, "cut off in the middle of a line: repeat shard 2/3 with ++overwrite True"),
        (copy_of_first, "utterance 'dev/a1' is in the shards 1/3 and 2/3"),
        (other_header, "has another header than that of shard 1/3"),
        (more_utterances, "the shards have 6 utterances together, but the corpus had 7"),
        (lambda f: change_record(f, beam_size=8), "the shards 1/3 and 2/3 are of different runs (beam_size: 4 and 8)"),
        (lambda f: change_record(f, checkpoint_time=1.5), "are of different runs (checkpoint_time: None and 1.5)"),
        (lambda f: change_record(f, plan={"num_utterances": 6, "fingerprint": "y"}), "are of different runs (plan"),
        (lambda f: change_record(f, shard="1/3"), "is not the record of shard 2/3"),
        (lambda f: os.remove(os.path.join(f, "options.json")), "the record of the shard's options, cannot be read"),
        (lambda f: os.remove(os.path.join(f, "wer.json")), "cannot be read (FileNotFoundError"),
    ],
)
def test_shards_that_do_not_fit(tmp_path, damage, message):
    write_shards(tmp_path)
    damage(Shard(2, 3).folder(str(tmp_path)))
    with pytest.raises(ShardError) as info:
        merge_shards(str(tmp_path), 3)
    assert message in str(info.value) and "\n" not in str(info.value)
    done = call_tool("merge_nbest", tmp_path, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert os.listdir(tmp_path) == ["shards"]


def test_which_shards(tmp_path):
    done = call_tool("merge_nbest", tmp_path, cwd=tmp_path)
    assert done.returncode == 1 and "has no folders of shards" in done.stderr
    write_shards(tmp_path, count=2)
    write_shards(tmp_path, count=3)
    done = call_tool("merge_nbest", tmp_path, cwd=tmp_path)
    assert done.returncode == 1 and "runs of 2 and 3 shards: say which with --shards N" in done.stderr
    done = call_tool("merge_nbest", tmp_path, "--shards", "4", cwd=tmp_path)
    assert done.returncode == 1 and "has no shards i/4, only of 2 and 3" in done.stderr
    assert call_tool("merge_nbest", tmp_path, "--shards", "2", cwd=tmp_path).returncode == 0


# ---- runs


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_tiny_setup(str(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def options(setup):
    return {
        "data_dir": setup.data_dir,
        "vocab": VOCAB,
        "recog_parts": "train,dev",
        "load": setup.checkpoints["aed"],
        "device": "cpu",
        "num_workers": 0,
        "max_seqs": 2,
        "output_dir": "output/x",
    }


SEARCHES = {
    "demo_recog_labelsync": {},
    "demo_recog_timesync": {"returnn_search_output": True, "beam_size": 4},
    "demo_forced_labelsync": {},
}


@pytest.fixture(scope="module")
def references(options, tmp_path_factory):
    """:return: config -> folder with the results of one process"""
    folders = {}
    for config, more in SEARCHES.items():
        folder = tmp_path_factory.mktemp(config)
        fork_config(config, folder, **options, **more)
        folders[config] = folder / "output" / "x"
    return folders


def same_results(folder, reference) -> None:
    """All files but the computing times."""
    names = {"nbest.jsonl", "options.json", "search_out.py"} & set(os.listdir(reference))
    for name in names:
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    wer, its = (json.loads((place / "wer.json").read_text()) for place in (folder, reference))
    assert wer.pop("time")["audio_seconds"] == pytest.approx(its.pop("time")["audio_seconds"])
    assert wer == its and (folder / "wer.txt").is_file()


def test_forced_scores(options, references, tmp_path):
    for shard in ("1/2", "2/2"):
        fork_config("demo_forced_labelsync", tmp_path, **options, shard=shard)
    same_results(tmp_path / "output" / "x", references["demo_forced_labelsync"])


def test_three_shards_are_one_run(options, references, tmp_path):
    """In any order; one is missing, so nothing is merged; then only that one is done."""
    config = "demo_recog_timesync"
    options = {**options, **SEARCHES[config]}
    folder = tmp_path / "output" / "x"
    for index in (3, 1):
        res = fork_config(config, tmp_path, **options, shard=f"{index}/3")
        assert f"Shard {index}/3: 2 of 6 batches, 4 of 12 utterances" in res.stdout
    assert "Shard 1/3 is done. Not finished: 2/3." in res.stdout
    assert not (folder / "nbest.jsonl").exists()
    done = call_tool("merge_nbest", folder, cwd=tmp_path)
    assert done.returncode == 1 and "not finished: 2/3" in done.stderr
    times = {i: (folder / "shards" / f"{i}-of-3" / "nbest.jsonl").stat().st_mtime_ns for i in (1, 3)}
    res = fork_config(config, tmp_path, **options, shard="2/3")
    assert "All 3 shards: n-best lists in" in res.stdout
    same_results(folder, references[config])
    for i, time in times.items():
        assert (folder / "shards" / f"{i}-of-3" / "nbest.jsonl").stat().st_mtime_ns == time

    # All of this is known to be finished: whole run, any shard.
    for shard in (None, "1/3", "1/2"):
        res = fork_config(config, tmp_path, **options, **({"shard": shard} if shard else {}))
        assert "has finished before" in res.stdout
    # The last one was killed before it had merged: any shard that is started again merges.
    os.remove(folder / "nbest.jsonl")
    res = fork_config(config, tmp_path, **options, shard="1/3")
    assert "All 3 shards: n-best lists in" in res.stdout and "Shard 1/3 is done" not in res.stdout
    same_results(folder, references[config])


def test_torchrun(options, references, tmp_path):
    torchrun = os.path.join(os.path.dirname(sys.executable), "torchrun")
    config = "demo_recog_labelsync"
    command = [torchrun, "--nproc-per-node", "2", "--standalone", "-m", "returnn", config_file(config)]
    for key, value in options.items():
        command += [f"++{key}", str(value)]
    run_command(command, str(tmp_path))
    same_results(tmp_path / "output" / "x", references[config])


def test_runs_that_do_not_fit(options, tmp_path):
    def error(**more):
        res = fork_config("demo_recog_ctc", tmp_path, ok=False, **{**options, **more})
        assert res.returncode == 1 and "Traceback" not in res.stderr, res.stderr
        return res.stderr

    assert "7 shards, but with batch_size = 3200000 and max_seqs = 2 there are only 6 batches" in error(shard="1/7")
    assert "shard = '5/4': expected i/N" in error(shard="5/4")
    fork_config("demo_recog_ctc", tmp_path, **options, shard="1/2")
    message = error(shard="2/2", blank_penalty=1)
    assert "1-of-2 has the results of a run with other options (there and here: blank_penalty: 0.0 and 1.0)" in message
    res = fork_config("demo_recog_ctc", tmp_path, **options, shard="2/2", blank_penalty=1, overwrite=True)
    assert "Not merged: " in res.stdout and "are of different runs (blank_penalty: 0.0 and 1.0)" in res.stdout
    assert not (tmp_path / "output" / "x" / "nbest.jsonl").exists()
    res = fork_config("demo_recog_ctc", tmp_path, **options, shard="1/2", blank_penalty=1, overwrite=True)
    assert "All 2 shards" in res.stdout
    assert "holds the results of a run with other blank_penalty: 1.0 -> 0.0" in error(shard="2/2")


@pytest.mark.parametrize("config", ["demo_prior", "demo_ilm_context", "demo_perplexity"])
def test_runs_of_one_process(config, monkeypatch, tmp_path):
    filename = config_file(config)
    module = importlib.import_module(f"configs.base.{config.removeprefix('demo_')}")
    monkeypatch.setattr(module, "command_line_options", lambda: {"data_dir": str(tmp_path)})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with open(filename, encoding="utf8") as file, pytest.raises(OptionError) as info:
        exec(compile(file.read(), filename, "exec"), {"__file__": filename, "__name__": "__returnn_config__"})
    assert "is done by one process, not by 2: start it with rnn.py, not torchrun" in str(info.value)
