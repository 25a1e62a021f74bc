"""tools/results.py as a user calls it."""

from __future__ import annotations

import csv
import io
import json
import os

import pytest
from tool_runs import call_tool, run_tool

from configs.base.published import load_models, load_results
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance
from tools.result_data.finished_run import model_name
from tools.result_data.plots import series_over


def results(*args, cwd="."):
    return call_tool("results", *args, cwd=cwd)


def test_table_from_any_folder(tmp_path):
    args = "table --corpus tedlium2 --recipe att_ctc_opls --model model_ctc0.3_att0.7 model_baseline --sort dev".split()
    done = run_tool("results", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1] == "recipe model att ctc prior beam dev test".split()
    assert lines[3:] == [
        "att_ctc_opls model_baseline 0.8 0.2 0.75 12/32 7.0 6.6".split(),
        "att_ctc_opls model_ctc0.3_att0.7 0.67 0.33 0.7 12/32 7.2 6.7".split(),
    ]


def test_invalid_rows_are_marked():
    args = ("table", "--corpus", "tedlium2", "--recipe", "att_ctc_lm_optsr", "--model", "model_baseline*")
    done = results(*args, "--markdown", "--sources")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].startswith("**tedlium2, recognition**")
    (row,) = [line for line in lines if "model_baseline_lay6" in line]
    assert "| 89.0† | 88.0† |" in row and "scales.py:736" in row and row.count("|") == lines[2].count("|")
    assert lines[-1].startswith("† invalid: the time-synchronous runs")
    assert "†" not in results(*args, "--valid").stdout


def test_pivot_and_best():
    done = results(*"table --corpus tedlium2 --recipe att att_ctc_optsr --model model_baseline* --pivot".split())
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["model", "att", "att_ctc_optsr"] and len(lines) == 8
    assert lines[3].split("  ")[-1] == "0.85,0.15,0.3 : 7.1/6.8" and lines[4].endswith("8.1/7.2†")
    done = results(*"table --corpus librispeech --kind recognition --sort test-other --best 1".split())
    assert "tuned_on_test" in done.stdout and "† invalid: the scales were tuned on the test set" in done.stdout
    done = results(*"table --corpus librispeech --kind recognition --sort test-other --best 1 --valid".split())
    assert "3.9" in done.stdout and "tuned_on_test" not in done.stdout


def test_csv_and_json(tmp_path):
    done = results("table", "--csv", "--output", "all.csv", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text())))
    everything = load_results()
    assert len(rows) == len(everything)
    for row, expected in zip(rows, everything, strict=True):
        assert row["model"] == expected.model and row["source"] == expected.source
        assert row["lm_scale"] == str(expected.scales.get("lm", "")) and row["wer_dev"] == str(
            expected.wer.get("dev", "")
        )
    rows = json.loads(results("table", "--json", "--kind", "system", "--corpus", "tedlium2").stdout)
    assert rows[-2]["num_words"] == {"dev": 14671}


def test_recipes():
    done = results("recipes", "--corpus", "tedlium2")
    (line,) = [line for line in done.stdout.splitlines() if " att_ctc_lm_opls " in line]
    assert line.split()[-1] == "6.3" and "(17)" in line and "time_sync" not in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["table", "--recipe", "nothing"], "none of the"),
        (["table", "--corpus", "tedlium2", "--sort", "dev-other"], "have the parts dev, test"),
        (["plot", "x.gif", "--part", "dev"], "ends with .png"),
        (["plot", "x.png", "--part", "dev-clean", "--x", "layer"], "no result with a WER on dev-clean has a place"),
        (["table", "--output", "no/such/folder/x"], "No such file"),
        (["add", "nowhere"], "has the recognition run ended?"),
    ],
)
def test_errors(tmp_path, args, message):
    done = results(*args, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert not os.listdir(tmp_path)


def test_series():
    rows = [row for row in load_results() if row.corpus == "tedlium2" and row.kind == "recognition"]
    series = series_over("loss-scale", rows, load_models(), part="dev")
    assert series["att_ctc_opls"] == [
        *((0.001, 9.1), (0.1, 7.5), (0.2, 7.1), (0.3, 7.2), (0.4, 7.0)),
        *((0.5, 7.0), (0.6, 7.3), (0.7, 7.0), (0.8, 7.5), (0.9, 7.7)),
    ]
    assert series["att"][0] == (0.0, 9.3) and series["att, sum of scales not 1"] == [(0.5, 7.4)]
    series = series_over("layer", rows, load_models(), part="test")
    assert series["att_ctc_opls, CTC 0.3, attention 0.7"] == [(6, 7.1), (8, 6.9), (10, 6.8), (12, 6.7)]
    assert [x for x, _ in series["att_ctc_optsr, CTC 1, attention 1"]] == [12]  # the others are invalid
    series = series_over("layer", rows, load_models(), part="test", invalid=True)
    assert [x for x, _ in series["att_ctc_optsr, CTC 1, attention 1"]] == [6, 8, 10, 12]
    series = series_over("recipe", rows, load_models(), part="dev")
    assert ("att_ctc_lm_opls", 6.3) in series["model_ctc0.3_att0.7"]


@pytest.mark.parametrize("x", ["loss-scale", "layer", "recipe"])
def test_plots(tmp_path, x):
    args = ("--x", x, "--part", "dev", "--corpus", "tedlium2", "--recipe", "att_ctc_*pls", "--max-wer", 12)
    done = results("plot", "wer.png", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "wer.png").read_bytes().startswith(b"\x89PNG") and "series" in done.stdout


OPTIONS = {
    "att_scale": 0.7,
    "ctc_scale": 0.3,
    "lm_scale": 0.2,
    "ilm_scale": 0.0,
    "prior_scale": 0.0,
    "beam_size": 8,
    "length_norm_exponent": 1.0,
    "lm_checkpoint": "output/demo_lm_train",
    "checkpoint": "last",
}


def write_run(tmp_path, name="demo_recog_labelsync", search="label_sync", *, checkpoint=True, **options):
    """:return: folder of a finished run: 1 error in 4 words on dev, none in 2 on test"""
    folder = tmp_path / "output" / name
    folder.mkdir(parents=True, exist_ok=True)
    options = {**OPTIONS, **options}
    header = NBestHeader(search, {"att": 0.7, "ctc": 0.3, "lm": 0.2}, options=options)
    with NBestWriter(str(folder / "nbest.jsonl"), header) as writer:
        for tag, ref, hyp in (("dev/a-1", "a b c d", "a x c d"), ("test/a-2", "e f", "e f")):
            scores = {"att": -1.0, "ctc": -1.0, "lm": -1.0}
            writer.write(Utterance(tag, 1.0, 10, ref, [Hypothesis([1], hyp, -1.2, scores)]))
    if checkpoint:
        options = {**options, "checkpoint": str(tmp_path / "output" / "demo_train" / "models" / "epoch.020.pt")}
        (folder / "options.json").write_text(json.dumps(options))
    return folder


def test_add(tmp_path):
    folder = write_run(tmp_path)
    args = ("--folder", "results", "--machine", "laptop")
    done = results("add", folder, *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = load_results(str(tmp_path / "results"))
    assert (row.corpus, row.recipe, row.model, row.lm) == ("demo", "att_ctc_lm_opls", "demo_train", "demo_lm_train")
    assert row.scales == {"att": 0.7, "ctc": 0.3, "lm": 0.2} and row.beams == (8,)
    assert row.wer == {"dev": 25.0, "test": 0.0} and row.num_words == {"dev": 4, "test": 2} and row.measured
    assert row.command == (
        "rnn.py configs/demo_recog_labelsync.config ++lm_checkpoint output/demo_lm_train ++beam_size 8 ++att_scale 0.7"
        " ++ctc_scale 0.3 ++lm_scale 0.2 ++length_norm_exponent 1.0"
    )
    assert str(tmp_path) not in (tmp_path / "results" / "measured.jsonl").read_text()
    assert "there already" in results("add", folder / "nbest.jsonl", *args, cwd=tmp_path).stdout

    write_run(tmp_path, beam_size=16)
    done = results("add", folder, *args, cwd=tmp_path)
    assert done.returncode == 1 and "--replace it" in done.stderr
    assert results("add", folder, *args, "--replace", cwd=tmp_path).returncode == 0
    assert results("add", folder, *args, "--recipe", "mine", "--note", "a note", cwd=tmp_path).returncode == 0
    rows = load_results(str(tmp_path / "results"))
    assert [(row.recipe, row.beams) for row in rows] == [("att_ctc_lm_opls", (16,)), ("mine", (16,))]
    table = results("table", "--folder", "results", "--measured", cwd=tmp_path).stdout
    assert "a note; measured 2" in table and "25.0" in table


def test_add_from_wer_json(tmp_path):
    """The n-best file can be left behind."""
    folder = write_run(tmp_path, "demo_recog_ctc", "ctc_greedy", prior_scale=0.3, lm_checkpoint=None)
    done = call_tool("score", folder / "nbest.jsonl", "--json", "scores.json", cwd=tmp_path)
    assert done.returncode == 0
    (run,) = json.loads((tmp_path / "scores.json").read_text())["runs"]
    os.remove(folder / "nbest.jsonl")
    (folder / "wer.json").write_text(json.dumps(run))
    done = results("add", folder, "--folder", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = load_results(str(tmp_path / "results"))
    assert (row.recipe, row.scales, row.wer["dev"]) == ("ctc_greedy_prior", {"ctc": 1.0, "prior": 0.3}, 25.0)
    os.remove(folder / "options.json")
    done = results("add", folder, "--folder", "results", cwd=tmp_path)
    assert done.returncode == 1 and "options.json must be beside it" in done.stderr


def test_add_refuses(tmp_path):
    def message(folder, *args):
        done = results("add", folder, "--folder", "results", *args, cwd=tmp_path)
        assert done.returncode == 1 and not (tmp_path / "results").exists()
        return done.stderr

    assert "dev has 1 of 507 utterances" in message(write_run(tmp_path, "ted2_recog_labelsync"))
    assert "give --corpus" in message(write_run(tmp_path, "mine"))
    assert "librispeech has no part 'dev'" in message(write_run(tmp_path, "mine"), "--corpus", "librispeech")
    assert "give --model" in message(write_run(tmp_path, "demo_other", checkpoint=False))
    assert "is of the kind 'forced'" in message(write_run(tmp_path, "demo_x", "forced"))
    folder = write_run(tmp_path, "ted2_recog_labelsync")
    assert results("add", folder, "--folder", "results", "--subset", cwd=tmp_path).returncode == 0
    (row,) = load_results(str(tmp_path / "results"))
    assert row.note == "dev has 1 of 507 utterances; test has 1 of 1155 utterances"


def test_model_names():
    assert model_name("output/ted2_train/models/epoch.400.pt") == "ted2_train"
    assert model_name("output/ted2_train/models/") == model_name("output/ted2_train") == "ted2_train"
    assert model_name("converted/tedlium.pt") == "tedlium"
