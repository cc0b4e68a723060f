import re
import shutil
import subprocess
from base64 import b64encode
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pneumobatch import config, storage, tables
from pneumobatch.evaluation import drift, worklists
from pneumobatch.evaluation.explained import Explained, Picture
from pneumobatch.evaluation.report import Findings, render, write_report
from pneumobatch.evaluation.summary import summarise

BAND = (0.2, 0.75)
OPTIONS = config.Evaluation(bootstrap=40, prevalence=0.08)
NOTHING = Explained()
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects text and attributes, and checks that every element is closed."""

    def __init__(self, html):
        super().__init__()
        self.stack, self.text, self.tags, self.attributes = [], [], [], []
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.text.append(data)

    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def find(predictions, record, options=OPTIONS, reference=None, history=None, runs=1, prior=None, explained=NOTHING):
    return Findings(
        predictions,
        summarise(predictions, options, record, prior),
        runs,
        predictions["probability"],
        drift.Reference(reference, None if reference else "the bundle has no reference; train again to have one"),
        None if reference is None else drift.measure(reference, predictions, options, record),
        worklists.review(predictions),
        worklists.discrepancies(predictions),
        history,
        BAND,
        explained,
    )


def page(predictions, record, options=OPTIONS, **more):
    return render(record, find(predictions, record, options, **more), options)


@pytest.fixture
def html(record, without_paths, reference, history):
    return page(without_paths, record, reference=reference, history=history)


def test_the_page_needs_nothing_from_elsewhere(html):
    page = Page(html)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    links = [v for k, v in page.attributes if k in {"src", "href", "xlink:href", "action"}]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", html)
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<]+", html)) <= names


def test_the_page_says_what_it_is_not(html):
    assert "Research use only. Not a medical device." in Page(html).words()


def test_the_page_reconciles(html, record):
    counts = record["counts"]
    words = Page(html).words()
    assert f"{counts['catalogued']} catalogued = {counts['scored']} scored + {counts['rejected']} rejected" in words
    assert "The counts reconcile." in words
    assert "view_not_frontal" in words and "truncated_jpeg" in words


def test_a_page_that_does_not_reconcile_warns(record, predictions):
    record["counts"]["catalogued"] += 1
    assert "do not reconcile" in page(predictions, record)


def test_films_of_several_runs_reconcile_with_their_own_number(record, predictions, make_predictions):
    options = OPTIONS.model_copy(update={"scope": "model"})
    words = Page(page(predictions, record | {"counts": {"catalogued": 3}}, options, runs=12)).words()
    assert "The counts reconcile." in words
    assert "the latest row of every image in 12 runs of this model" in words
    twice = pa.concat_tables([predictions, predictions.slice(0, 1)])
    assert "do not reconcile" in page(twice, record, options)


def test_the_page_holds_no_identity(html, predictions):
    for secret in ("Doe_", "secret/", ".dcm", "patient-", "/mnt/", "/models/private"):
        assert secret not in html


def test_paths_are_shown_where_the_predictions_have_them(record, predictions):
    html = page(predictions, record)
    assert "secret/Doe_Jane" in html and "name films by their source path" in html
    assert "patient-" not in html


def test_the_page_holds_rates_intervals_and_figures(html, predictions, record):
    words, row = Page(html).words(), summarise(predictions, OPTIONS, record).to_pylist()[0]
    for name in ("sensitivity", "specificity", "precision", "npv", "auroc", "accuracy", "f1"):
        assert f"{row[name]:.3f} {row[name + '_low']:.3f}–{row[name + '_high']:.3f}" in words
    assert html.count("<figure") == 8
    assert "suppressed: fewer than 20 labelled films" in words
    assert "8.0 % · local" in words


def test_the_page_tells_how_many_films_are_resampled_alone(record, predictions):
    assert "patients resampled whole. An interval" in Page(page(predictions, record)).words()
    patients = [None if i < 200 else p for i, p in enumerate(predictions["patient"].to_pylist())]
    index = predictions.column_names.index("patient")
    films = predictions.set_column(index, "patient", pa.array(patients))
    alone = pc.sum(pc.and_(films["probability"].is_valid(), films["label"].is_valid()).slice(0, 200)).as_py()
    words = Page(page(films, record)).words()
    assert f"patients resampled whole, and {alone} films of unknown patients one by one" in words
    assert "fewer than 10 patients (or films), or of a value that more than 5 % of the resamples" in words


def test_the_page_shows_what_screening_and_evaluation_read_and_no_path_in_it(record, predictions):
    record["config"] |= {
        "experiment": {"test": "/secret/test"},
        "factors": {"network": [{"name": "a", "network": {"weights": "/secret/w.safetensors"}}]},
        "archive": {"uri": "/secret/in", "roots": ["/secret/root"], "subgroups": ["site"]},
        "cluster": {"shared_paths": ["/secret/nfs"], "patience_minutes": 7.0},
        "screening": {"batch_size": 32, "steps": [{"bundle": "/secret/bundle", "kept": "so"}]},
    }
    html = page(predictions, record).replace("secret/Doe", "")
    assert "/secret" not in html and "factors" not in html
    assert "patience_minutes" in html and "(in the run record)" in html and "kept" in html and "subgroups" in html


def test_without_labels_the_page_says_so(record, make_predictions):
    bare = make_predictions(labelled=0)
    shown = Page(page(bare, record))
    assert "No label is known for any scored film" in shown.words()
    assert "Sensitivity and specificity" not in shown.words()
    assert shown.tags.count("figure") == 1


def test_a_record_of_two_keys_and_one_class_are_enough(predictions):
    for rows in (predictions.filter(pc.field("label") == 1), predictions.filter(pc.field("status") == "failed")):
        Page(page(rows, {"run_id": "r", "model_id": "m"}))


def test_foreign_text_is_escaped(record, predictions):
    record["versions"]["<script>alert(1)</script>"] = "<b>"
    assert "<script" not in page(predictions, record)


def test_many_suppressed_values_are_only_counted(record, make_predictions):
    predictions = make_predictions()
    index = predictions.column_names.index("etiology")
    names = [f"value-{i}" for i in range(len(predictions))]
    many = predictions.set_column(index, "etiology", [names])
    html = page(many, record)
    assert "600 further values" in html and "value-7" not in html


def test_of_many_values_the_largest_are_tabulated(record, make_predictions):
    predictions = make_predictions()
    index = predictions.column_names.index("etiology")
    names = ["large" if i % 2 else f"value-{i % 60}" for i in range(len(predictions))]
    many = predictions.set_column(index, "etiology", [names])
    html = page(many, record, OPTIONS.model_copy(update={"min_cell": 2}))
    assert "7 further values: see the summary table" in html and "<td>large</td>" in html


def test_the_page_says_scope_labels_and_drift(html, without_paths, record):
    words = Page(html).words()
    assert "the images of this run" in words
    assert f"version {summarise(without_paths, OPTIONS, record)['label_version'][0].as_py()}" in words
    assert "measures drifted" in words or "None of" in words
    assert "called pneumonia" in words and "transfer syntax" not in words  # unknown to this reference


def test_the_page_says_what_is_uncertain(html, without_paths, record):
    words, found = Page(html).words(), summarise(without_paths, OPTIONS, record).to_pylist()
    row, certain = found[0], found[1]
    assert certain["threshold_kind"] == "certain"
    assert f"0.2000 to 0.7500 are uncertain: {row['uncertain']} of {row['scored']} scored films" in words
    for key in ("sensitivity", "precision"):
        assert f"{certain[key]:.3f} {certain[key + '_low']:.3f}–{certain[key + '_high']:.3f}" in words
    assert "uncertain</span>" in html and re.search(r"discrepancies.*\d+ uncertain", words.lower())


def test_a_model_without_a_band_says_nothing_of_it(record, predictions):
    index = predictions.column_names.index("uncertain")
    older = predictions.set_column(index, "uncertain", pa.nulls(len(predictions), pa.bool_()))
    assert "Uncertain films" not in page(older, record)


def test_the_page_holds_for_the_local_prevalence(record, without_paths):
    html = page(without_paths, record, prior=0.62)
    words, row = Page(html).words(), summarise(without_paths, OPTIONS, record, 0.62).to_pylist()[0]
    assert "Calibration at the local prevalence" in words
    assert f"from the model's prevalence of 62.0 % to 8.0 %: Brier score {row['local_brier']:.3f}" in words
    assert f"{row['local_ppv']:.3f} {row['local_ppv_low']:.3f}–{row['local_ppv_high']:.3f}" in words
    assert "cannot be corrected" in page(without_paths, record)


def test_the_page_shows_pictures_and_borders_as_they_were_found(record, without_paths):
    picture = Picture("false positive", "0" * 32, None, 0.987, b"film", b"evidence", None, (7, 8))
    row = {
        "region": "border", "films": 40, "positives": 20, "negatives": 20, "auroc": 0.9, "auroc_low": 0.8,
        "auroc_high": 0.95, "auroc_change": -0.0214, "auroc_change_low": -0.04, "auroc_change_high": 0.01,
        "accuracy": 0.85, "accuracy_low": 0.7, "accuracy_high": 0.93, "accuracy_change": -0.05, "sensitivity": 0.9,
        "specificity": 0.8, "changed_calls": 3, "mean_change": 0.0456,
    }  # fmt: skip
    masking = pa.Table.from_pylist([row], schema=tables.masking_schema())
    html = page(without_paths, record, explained=Explained([picture], None, masking))
    shown = Page(html)
    assert [v for k, v in shown.attributes if k == "src"] == [
        f"data:image/jpeg;base64,{b64encode(data).decode()}" for data in (b"film", b"evidence")
    ]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html
    words = shown.words()
    assert (
        "False positives" in words
        and "in 7 × 8 cells" in words
        and "probability 0.987" in words
        and "holds pictures of films" in words
    )
    assert "spatial gate" not in words  # this network has none
    gated = page(without_paths, record, explained=Explained([picture._replace(gate=b"gate")], None, masking))
    assert "; the spatial gate dims what it holds back" in Page(gated).words()
    assert "border, a tenth of each side 0.900 0.800–0.950 −0.021 −0.040 to +0.010" in words
    refused = page(without_paths, record, explained=Explained((), "reasons", None, "others"))
    assert "No heat maps: reasons." in refused and "Borders not checked: others." in refused


def test_a_page_without_reference_says_why(record, predictions):
    assert "Not measured: the bundle has no reference" in Page(page(predictions, record)).words()


def test_too_few_films_are_not_judged(record, predictions, reference):
    words = Page(page(predictions.slice(0, 50), record, reference=reference)).words()
    assert (
        "Not judged:" in words and "are fewer than 100" in words and "drifted" not in words.replace("has drifted", "")
    )


def test_the_lists_show_as_many_films_as_wanted(record, without_paths):
    lists = find(without_paths, record)
    html = page(without_paths, record, OPTIONS.model_copy(update={"review_images": 3}))
    first = lists.discrepancies["image_id"].to_pylist()
    assert all(image_id in html for image_id in first[:3]) and first[3] not in html
    assert f"To review: {len(lists.review)} scored films" in html
    assert "The first 3; the table beside this report holds all." in html


def test_write_report_puts_the_page_below_the_output(tmp_path, record, predictions):
    uri = write_report(str(tmp_path), record, find(predictions, record), OPTIONS)
    assert uri == f"{tmp_path}/reports/{record['run_id']}/index.html"
    assert storage.read_bytes(uri).startswith(b"<!DOCTYPE html>")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH to lay the page out")
def test_a_browser_shows_the_page_without_sideways_scrolling(tmp_path, html):
    # The page's own policy forbids scripts; the copy under test has one that measures.
    probe = "<script>document.title = 'wide ' + Math.max(...[document.documentElement, ...document.querySelectorAll("
    probe += "'.scroll')].map(e => e.scrollWidth - e.clientWidth))</script></body>"
    probed = (
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
        .replace("</body>", probe)
        .replace("<details>", "<details open>")
    )
    (tmp_path / "index.html").write_text(probed, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--window-size=1280,2000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", "--hide-scrollbars"]
    uri = (tmp_path / "index.html").as_uri()
    subprocess.run(["chromium", *options, uri], check=True, capture_output=True, timeout=60)
    assert (tmp_path / "page.png").stat().st_size > 50_000
    shown = subprocess.run(["chromium", *options[:-2], "--dump-dom", uri], check=True, capture_output=True, timeout=60)
    assert "<title>wide 0</title>" in shown.stdout.decode()
