"""The HTML report: inputs, sections, hostile texts, real runs, and how it behaves in a browser."""

from __future__ import annotations

import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser

import pytest
from matplotlib.image import imread
from tiny_setup import make_tiny_setup
from tool_runs import call_tool, run_tool

from recog.learning_rates import LearningRatesError, read_learning_rates
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance
from tools.reporting.analysis import search_errors_section
from tools.reporting.charts import Bar, Curve, bar_chart, heat_map, line_chart, ticks
from tools.reporting.inputs import load_inputs
from tools.reporting.page import render
from tools.reporting.results import alignment_cells, corpus_of, published_section, results_section, utterances_section

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</style></script><b>x",
    "'; alert(1); //",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&amp;",
    "javascript:alert(1)\u2028\u202e",
)


def write_run(folder, utterances, *, search="label_sync", scales=None, options=None, command=None):
    """:return: folder of a run: (tag, reference, texts of the hypotheses) each"""
    os.makedirs(folder, exist_ok=True)
    header = NBestHeader(search, scales or {"att": 0.7, "ctc": 0.3}, options=options or {})
    with NBestWriter(os.path.join(folder, "nbest.jsonl"), header) as writer:
        for tag, ref, texts in utterances:
            hyps = []
            for i, text in enumerate(texts):
                scores = {name: -1.0 - i * (1 + k) for k, name in enumerate(header.scales)}
                total = sum(header.scales[name] * score for name, score in scores.items())
                hyps.append(Hypothesis([1, 2], text, total, scores))
            writer.write(Utterance(tag, 1.5, 20, ref, hyps))
    if command:
        with open(os.path.join(folder, "returnn.log"), "w", encoding="utf8") as file:
            file.write("RETURNN starting up, version 1.2, date/time 2026-01-02-03-04-05 (UTC+0000), pid 1, cwd /\n")
            file.write(f"RETURNN command line options: {command!r}\nPyTorch: 2.9 (abc)\nUsing device: cpu\n")
    return str(folder)


def write_learning_rates(folder, *, text=None):
    os.makedirs(folder, exist_ok=True)
    epochs = "".join(
        f"{e}: EpochData(learningRate=0.1, error={{\n':meta:effective_learning_rate': {0.1 / e},\n"
        f"'dev_loss_ce': {3 / e},\n'train_loss_ce': {'nan' if e == 2 else 4 / e},\n}}),\n"
        for e in (1, 2, 3)
    )
    with open(os.path.join(folder, "learning_rates"), "w", encoding="utf8") as file:
        file.write(text if text is not None else "{\n" + epochs + "}\n")
    return str(folder)


class Elements(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_data(self, data):
        self.text.append(data)


def section_ids(page):
    return re.findall(r'<section id="(\w+)">', page)


# ---- inputs


def test_learning_rates_are_parsed_not_executed(tmp_path):
    epochs = read_learning_rates(os.path.join(write_learning_rates(tmp_path / "a"), "learning_rates"))
    assert list(epochs) == [1, 2, 3] and epochs[2]["dev_loss_ce"] == 1.5 and epochs[1]["learning_rate"] == 0.1
    assert epochs[2]["train_loss_ce"] != epochs[2]["train_loss_ce"]
    marker = tmp_path / "executed"
    for number, text in enumerate(
        (
            f"{{1: EpochData(learningRate=open({str(marker)!r}, 'w'), error={{}})}}",
            f"{{1: __import__('os').mkdir({str(marker)!r})}}",
            "{1: 2}",
            "[]",
            "{1: EpochData(",
            "(" * 500,
        )
    ):
        folder = write_learning_rates(tmp_path / str(number), text=text)
        with pytest.raises(LearningRatesError, match="learning_rates: not a file of learning rates"):
            read_learning_rates(os.path.join(folder, "learning_rates"))
    assert not marker.exists()


def test_what_is_no_run_is_an_error_that_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "old.json").write_text('{"format": 1, "pairs": [{"run": "x"}]}')
    for name, message in {
        "nowhere": "does not exist",
        "empty": "Has the run ended",
        "other.json": "nothing that a report can show",
        "broken.json": "not JSON",
        "old.json": "has no audit",
    }.items():
        result = call_tool("report", name, cwd=tmp_path)
        assert result.returncode == 1 and message in result.stderr and name in result.stderr
    assert not (tmp_path / "report.html").exists()
    run = write_run(tmp_path / "run", [("dev/1", "a", ["a"])])
    result = call_tool("report", run, "--output", "report.pdf", cwd=tmp_path)
    assert result.returncode == 2 and ".html" in result.stderr


def test_missing_inputs_have_no_section(tmp_path):
    train = write_learning_rates(tmp_path / "x_train")
    page = render(load_inputs([train]), title="t", command=["x"])
    assert section_ids(page) == ["training", "commands"]
    right = write_run(tmp_path / "right", [("dev/1", "a b", ["a b"])], scales={"ctc": 1.0})
    assert section_ids(render(load_inputs([right]), title="t", command=["x"])) == ["results", "utterances", "commands"]
    two = render(load_inputs([right, train]), title="t", command=["x"], max_utterances=0)
    assert section_ids(two) == ["results", "training", "commands"]


# ---- sections


def test_alignment_cells():
    assert alignment_cells("a b c d", "A b x d e") == [
        ("ok", "a b", "a b"),
        ("sub", "c", "x"),
        ("ok", "d", "d"),
        ("ins", None, "e"),
    ]
    assert alignment_cells("a b", "") == [("del", "a", None), ("del", "b", None)]
    assert alignment_cells("", "") == []


def test_results_mark_the_best_only_on_the_same_utterances(tmp_path):
    utts = [(f"dev/{i}", "one two three", ["one two three"]) for i in range(4)]
    worse = [*utts[:3], ("dev/3", "one two three", ["one too three"])]
    inputs = load_inputs([write_run(tmp_path / "a", utts), write_run(tmp_path / "b", worse)])
    section = results_section(inputs.recognitions)
    assert [(row["run"], row["result"].num_errors, row["best"]) for row in section["rows"]] == [
        ("a", 0, True),
        ("b", 1, False),
    ]
    assert section["rows"][1]["interval"][0] <= 100 / 12 <= section["rows"][1]["interval"][1]
    inputs = load_inputs([str(tmp_path / "a"), write_run(tmp_path / "c", worse[1:])])
    section = results_section(inputs.recognitions)
    assert all(row["other_utts"] for row in section["rows"]) and "cannot be compared" in section["notes"][0]
    assert "best" not in re.findall(r'class="num( best)?"', render(inputs, title="t", command=["x"]))


def test_equal_hypotheses_of_several_runs_are_shown_once(tmp_path):
    a = write_run(tmp_path / "a", [("dev/1", "x y", ["x z"]), ("dev/2", "u", ["u"])])
    b = write_run(tmp_path / "b", [("dev/1", "x y", ["X Z"]), ("dev/2", "u", ["u"])])
    c = write_run(tmp_path / "c", [("dev/1", "x y", ["x y"]), ("dev/2", "u", ["u"])])
    section = utterances_section(load_inputs([a, b, c]).recognitions, max_utterances=10)
    assert (section["num_with_errors"], section["num_utterances"]) == (1, 2)
    groups = section["items"][0]["groups"]
    assert [group["runs"] for group in groups] == [["#1 a", "#2 b"], ["#3 c"]]
    assert [group["errors"] for group in groups] == [1, 0]


def test_published_rows_are_those_of_the_same_search_and_components(tmp_path):
    utts = [(f"{part}/{i}", "a", ["a"]) for part, num in (("dev", 507), ("test", 3)) for i in range(num)]
    run = write_run(tmp_path / "run", utts)
    section = published_section(load_inputs([run]).recognitions)
    assert section["rows"] and section["parts"] == ["dev", "test"]
    for item in section["rows"]:
        assert item["row"].corpus == "tedlium2" and item["row"].search == "label_sync"
        assert {name for name, scale in item["row"].scales.items() if scale} - {"prior"} == {"att", "ctc"}
    assert "3 utterances of test, but the corpus has 1155" in section["notes"][0]
    named = write_run(tmp_path / "named", utts, options={"recipe": "att", "model": "model_baseline"})
    section = published_section(load_inputs([named]).recognitions)
    assert [(item["row"].recipe, item["row"].model) for item in section["rows"]] == [("att", "model_baseline")]
    demo = write_run(tmp_path / "demo", utts, command=["configs/demo_recog_ctc.config"])
    assert corpus_of(load_inputs([demo]).recognitions[0]) == "demo"  # not what the number of utterances suggests


def test_ticks_and_gaps():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and ticks(0.31, 0.39)[0] == 0.32 and ticks(3, 3) == [3]
    svg = str(line_chart([Curve("<x>", [1, 2, 3, 4, 5], [1, 2, None, 4, 5])], x_label="<b>", y_label='"y"'))
    assert svg.count("<polyline") == 2 and svg.count("<circle") == 4 and "<b>" not in svg and "<x>" not in svg


def test_charts_escape_their_texts():
    for text in (*HOSTILE, "</title></svg><script>alert(1)</script>", "]]><svg/onload=alert(1)>", "<!--"):
        charts = [
            line_chart([Curve(text, [1, 2], [1, 2])], x_label=text, y_label=text, mark_x=[(1.5, text)]),
            bar_chart([Bar(text, 1.0, None, None, text)], label=text),
            heat_map(
                [0.0, 1.0],
                [0.0, 1.0],
                [[1.0, 2.0], [3.0, 4.0]],
                x_label=text,
                y_label=text,
                what=text,
                marks=[(0.5, 0.5, text)],
            ),
        ]
        for chart in map(str, charts):
            elements = Elements(chart)
            assert not {"script", "img", "b", "style"} & set(elements.tags), chart
            assert all(name[:2] != "on" for _, name, _ in elements.attributes)
            assert chart.count("<svg") == chart.count("</svg>") == 1


def test_hostile_texts_stay_texts(tmp_path):
    runs = []
    for number, text in enumerate(HOSTILE):
        utts = [(f"dev/{number}{text}", f"{text} word", [f"{text} other {HOSTILE[0]}", text])]
        folder = tmp_path / f"run{number}<img src=x onerror=alert(1)>"
        options = {text: text, "recipe": None, "beam_size": text}
        runs.append(write_run(folder, utts, options=options, command=[text, HOSTILE[0]]))
    record = {"run": HOSTILE[0], "parts": [HOSTILE[1]], "search": HOSTILE[0], "num_utts": 1, "max_hyps": 2}
    record |= {"scales_before": {"att": 1.0}, "scales": {"att": 2.0}, "criterion": HOSTILE[1], "intervals": {}}
    record |= {"results": {HOSTILE[0]: {"num_errors": 1, "wer_percent": 2.0, "confidence_95": None}}}
    record |= {"warnings": [HOSTILE[1]], "overrides": [HOSTILE[0]], "surface": None}
    record |= {"curves": [{"component": "att", "scales": [0.0, 1.0], "wer_percent": [1.0, 2.0]}]}
    with open(tmp_path / "tuned.json", "w") as file:
        json.dump(record, file)
    (tmp_path / "<b>picture.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    inputs = load_inputs([*runs, str(tmp_path / "tuned.json"), str(tmp_path / "<b>picture.svg")])
    page = render(inputs, title=HOSTILE[0], command=list(HOSTILE))
    elements = Elements(page)
    assert elements.tags.count("script") == 1 and elements.tags.count("style") == 1
    assert [value for tag, name, value in elements.attributes if tag == "img" and name == "src"] == [
        inputs.pictures[0].url
    ]
    assert not [attribute for attribute in elements.attributes if attribute[1].startswith("on")]
    assert not [a for a in elements.attributes if a[1] == "href" and a[2][:1] != "#" and a[2] != "data:,"]
    assert "b" not in elements.tags and "49" not in "".join(elements.text).split()
    for text in HOSTILE:
        assert text in "".join(elements.text)
    assert "http:" not in page.replace("http://www.w3.org", "") and "https:" not in page


def test_forced_scores_of_one_part_belong_to_the_runs_with_the_same_definition(tmp_path):
    utterances = [("dev/1", "a b", ["a c"]), ("test/1", "a", ["b"])]
    recog = write_run(tmp_path / "recog", utterances)
    with_lm = write_run(tmp_path / "recog_lm", utterances, scales={"att": 0.7, "ctc": 0.3, "lm": 0.5})
    forced = write_run(tmp_path / "forced", [("dev/1", "a b", ["a b"])], search="forced_label_sync")
    other = write_run(
        tmp_path / "other", [("dev/1", "a b", ["a b"])], search="forced_label_sync", scales={"att": 0.1, "ctc": 0.3}
    )
    section = search_errors_section(load_inputs([recog, with_lm, forced, other]), max_utterances=5)
    (record,) = section["records"]
    assert (record["run"], list(record["parts"]), record["num_utts"]) == ("recog", ["dev"], 1)
    (note,) = section["notes"]  # scores that fit no run; those of `forced` need not fit the run with the LM
    assert note.startswith("other has no forced scores for")
    of_test = write_run(tmp_path / "of_test", [("eval/1", "a b", ["a b"])], search="forced_label_sync")
    section = search_errors_section(load_inputs([recog, of_test]), max_utterances=5)
    assert not section["records"] and "has no part of" in section["notes"][0]


# ---- real runs


@pytest.fixture(scope="module")
def real_report(tmp_path_factory):
    """:return: folder with report.html, of a search, forced scores, tuning, beams and pictures of random models"""
    folder = tmp_path_factory.mktemp("report")
    setup = make_tiny_setup(str(folder))
    for config in ("demo_recog_labelsync", "demo_forced_labelsync"):
        res = setup.run(f"{config}.config")
        assert res.returncode == 0, res.stdout[-3000:] + res.stderr[-3000:]
    recog, forced = (f"output/demo_{kind}_labelsync" for kind in ("recog", "forced"))
    res = call_tool(
        "tune_scales", f"{recog}/nbest.jsonl", "--bootstrap", 20, "--json", f"{recog}/tuned.json", cwd=folder
    )
    assert res.returncode == 0, res.stderr
    tuned = json.loads((folder / recog / "tuned.json").read_text())
    searches = [
        {"search": n, "scales": {"att": 0.4, "ctc": 0.6}, "num_errors": 9, "wer_percent": 77.77} for n in (1, 2)
    ]
    tuned.update(searches=searches, best_search=2, stable=True)  # as of --loop, which would take longer
    (folder / recog / "tuned.json").write_text(json.dumps(tuned))
    points = [
        {"beam_size": b, "num_utts": 5, "wer": 100.0 - b, "worse_than_best_known": 20.0 / b, "search_errors": None}
        | {"model_errors": None, "real_time_factor": 0.01 * b}
        for b in (1, 2, 4)
    ]
    (folder / "beams.json").write_text(
        json.dumps({"config": "c/x.config", "overrides": [], "parts": ["dev"], "points": points})
    )
    perplexities = {"perplexity_per_word": {"x.pt": 123.456, "y.pt": 99.5}, "perplexity_per_label": {"x.pt": 7.0}}
    counts = dict.fromkeys("num_sentences num_labels num_words num_unknown".split(), 3)
    (folder / "ppl.json").write_text(json.dumps({"dev": {**counts, **perplexities, "log_prob": {"x.pt": -1.0}}}))
    train = write_learning_rates(folder / "output" / "demo_train")
    result = run_tool(
        "report", train, recog, forced, "beams.json", "ppl.json", "--pictures", 1, "--json", "r.json", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_real_runs(real_report):
    folder, result = real_report
    page = (folder / "report.html").read_text(encoding="utf8")
    assert f"Report: {folder / 'report.html'}" in result.stdout and "demo_recog_labelsync" in result.stdout
    ids = "results utterances search_errors tuning beams perplexity training pictures commands".split()
    assert section_ids(page) == ids
    wer = json.loads((folder / "output/demo_recog_labelsync/wer.json").read_text())["parts"]["dev"]
    assert json.loads((folder / "r.json").read_text())["runs"]["demo_recog_labelsync"]["parts"]["dev"] == wer
    assert f'best">{wer["wer_percent"]:.2f}<' in page or f'class="num">{wer["wer_percent"]:.2f}<' in page
    # Forced scores are no result, though their file has the format of one.
    assert "demo_forced_labelsync" not in page.partition('<section id="commands">')[0].partition("<main>")[2]
    assert "rnn.py" in page and "demo_recog_labelsync.config" in page and page.count("data:image/png;base64,") == 1
    tuned = json.loads((folder / "output/demo_recog_labelsync/tuned.json").read_text())
    assert 'best">99.50' in page and ">123.46<" in page
    tuning = page.partition('<section id="tuning">')[2]
    assert f"{tuned['results']['oracle']['wer_percent']:.2f}" in tuning
    assert tuning.count("77.77") == 2 and tuning.count('best">77.77') == 1


# ---- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHECK = """<!DOCTYPE html><meta charset="utf-8"><body><iframe id="phone" style="width:360px;height:800px"></iframe>
<pre id="out"></pre><script>
const out = {}, frame = document.getElementById("phone");
frame.onload = function () {
  const doc = frame.contentDocument, view = frame.contentWindow;
  out.width = view.innerWidth;
  out.overflow = doc.documentElement.scrollWidth - view.innerWidth;
  out.title = doc.title;
  out.sorted = {};
  const column = (table, i) => Array.from(table.tBodies[0].rows, (row) => row.cells[i].textContent);
  doc.querySelectorAll("table.sortable").forEach(function (table, t) {
    Array.from(table.tHead.rows[0].cells).forEach(function (head, i) {
      const button = head.querySelector("button");
      if (!button || table.tBodies[0].rows.length < 2) return;
      button.click();
      const up = [head.getAttribute("aria-sort"), column(table, i)];
      button.click();
      out.sorted[t + ":" + head.textContent + ":" + i] = [up, [head.getAttribute("aria-sort"), column(table, i)]];
    });
  });
  const input = doc.querySelector("input.filter");
  if (input) {
    const rows = Array.from(doc.getElementById(input.dataset.table).tBodies[0].rows);
    input.value = rows[0].cells[0].textContent;
    input.dispatchEvent(new view.Event("input"));
    out.filtered = [rows.length, rows.filter((row) => !row.hidden).length];
  }
  const charts = Array.from(doc.querySelectorAll("svg.chart"), (svg) => svg.getBoundingClientRect().width);
  out.charts = [charts.length, Math.min(...charts), Math.max(...charts)];
  out.images = Array.from(doc.images, (image) => image.naturalWidth);
  document.getElementById("out").textContent = JSON.stringify(out);
};
frame.src = "PAGE";
</script>"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")

    def start(url, *args):
        profile = tmp_path_factory.mktemp("profile")
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
        flags += " --disable-dev-shm-usage"
        command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", *args, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    try:  # some machines have the program, but not what it needs to run
        probe = start("about:blank", "--dump-dom")
        problem = probe.stderr[-300:] if probe.returncode or "<html>" not in probe.stdout else None
    except (OSError, subprocess.TimeoutExpired) as exc:
        problem = str(exc)
    if problem is not None:
        pytest.skip(f"{CHROMIUM} does not show an empty page: {problem}")

    def run(url, *args):
        res = start(url, *args)
        assert res.returncode == 0, res.stderr[-3000:]
        return res.stdout, [line for line in res.stderr.splitlines() if "CONSOLE" in line]

    return run


@pytest.fixture
def served(request):
    """:return: function from a folder to its address, for this test only"""
    servers = []

    def serve(folder):
        handler = functools.partial(QuietHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def check_in_browser(chromium, served, folder, page):
    (folder / "check.html").write_text(CHECK.replace("PAGE", page), encoding="utf8")
    dom, console = chromium(f"{served(folder)}/check.html", "--virtual-time-budget=20000", "--dump-dom")
    out = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert out and out[1], dom[-2000:]
    return json.loads(html.unescape(out[1])), console


def as_number(text):
    try:
        return float(text.split(" … ")[0])
    except ValueError:
        return None


def test_browser_phone_width_sorting_console(chromium, served, real_report):
    folder, _ = real_report
    out, console = check_in_browser(chromium, served, folder, "report.html")
    assert not console
    assert out["width"] == 360 and out["overflow"] == 0
    assert out["charts"][0] >= 6 and 200 < out["charts"][1] and out["charts"][2] <= 360
    assert out["images"] and all(out["images"])
    assert out["filtered"][1] == 1 < out["filtered"][0]
    assert len(out["sorted"]) > 10
    num_numeric = 0
    for name, ((up, ascending), (down, descending)) in out["sorted"].items():
        assert (up, down) == ("ascending", "descending") and sorted(ascending) == sorted(descending), name
        values = [[as_number(text) for text in column if text != "–"] for column in (ascending, descending)]
        if values[0] and None not in values[0]:
            num_numeric += 1
            assert values[0] == sorted(values[0]) and values[1] == sorted(values[1], reverse=True), name
        missing = ascending.count("–")
        assert all(text == "–" for column in (ascending, descending) for text in column[len(column) - missing :]), name
    assert num_numeric > 5


def test_browser_notices_what_the_tests_look_for(chromium, served, tmp_path):
    (tmp_path / "report.html").write_text(
        '<!DOCTYPE html><title>x</title><p style="width:999px">wide</p><svg class="chart" width="9"></svg>'
        "<script>console.error('wrong'); nothing();</script>"
    )
    out, console = check_in_browser(chromium, served, tmp_path, "report.html")
    assert out["overflow"] > 600 and len(console) == 2


def test_browser_hostile_texts(chromium, served, tmp_path):
    runs = [
        write_run(tmp_path / f"r{i}", [(f"dev/{text}", f"{text} a", [f"{text} b"])], command=[text])
        for i, text in enumerate(HOSTILE)
    ]
    result = call_tool("report", *runs, "--title", HOSTILE[0], cwd=tmp_path)
    assert result.returncode == 0
    out, console = check_in_browser(chromium, served, tmp_path, "report.html")
    assert out["title"] == HOSTILE[0] and not console and out["overflow"] == 0


def test_browser_pictures_of_the_page(chromium, real_report):
    """From the file, as a user opens it: light and dark, and on paper."""
    folder, _ = real_report
    url = f"file://{folder}/report.html"
    means = {}
    for name, args in {"light": (), "dark": ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")}.items():
        file = folder / f"{name}.png"
        _, console = chromium(url, "--window-size=1200,2000", f"--screenshot={file}", *args)
        assert not console
        pixels = imread(file)[:, :, :3]
        assert pixels.shape[:2] == (2000, 1200) and pixels.std() > 0.05
        means[name] = pixels.mean()
    assert means["light"] > 0.8 and means["dark"] < 0.4
    _, console = chromium(url, "--no-pdf-header-footer", f"--print-to-pdf={folder / 'page.pdf'}")
    content = (folder / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF") and content.count(b"/Type /Page\n") >= 2 and not console
