import re
import shutil
import subprocess
from html.parser import HTMLParser

import pyarrow.compute as pc
import pytest

from pneumobatch import config, storage
from pneumobatch.evaluation.report import render, write_report
from pneumobatch.evaluation.summary import summarise

OPTIONS = config.Evaluation(bootstrap=40, prevalence=0.08)
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


@pytest.fixture(scope="module")
def summary(predictions):
    return summarise(predictions, OPTIONS)


@pytest.fixture
def html(record, predictions, summary, history):
    return render(record, predictions, summary, OPTIONS, history)


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


def test_a_page_that_does_not_reconcile_warns(record, predictions, summary):
    record["counts"]["catalogued"] += 1
    assert "do not reconcile" in render(record, predictions, summary, OPTIONS)


def test_the_page_holds_no_identity(html, predictions):
    for secret in ("Doe_", "secret/", ".dcm", "patient-", "/mnt/", "/models/private"):
        assert secret not in html
    assert not any(image_id in html for image_id in predictions["image_id"].to_pylist())


def test_the_page_holds_rates_intervals_and_figures(html, summary):
    words, row = Page(html).words(), summary.to_pylist()[0]
    for name in ("sensitivity", "specificity", "precision", "npv", "auroc", "accuracy", "f1"):
        assert f"{row[name]:.3f} {row[name + '_low']:.3f}–{row[name + '_high']:.3f}" in words
    assert html.count("<figure>") == 7
    assert "suppressed: fewer than 20 labelled films" in words
    assert "8.0 % · local" in words


def test_without_labels_the_page_says_so(record, make_predictions):
    bare = make_predictions(labelled=0)
    page = Page(render(record, bare, summarise(bare, OPTIONS), OPTIONS))
    assert "No label is known for any scored film" in page.words()
    assert "Sensitivity and specificity" not in page.words()
    assert page.tags.count("figure") == 1


def test_a_record_of_two_keys_and_one_class_are_enough(predictions):
    for rows in (predictions.filter(pc.field("label") == 1), predictions.filter(pc.field("status") == "failed")):
        Page(render({"run_id": "r", "model_id": "m"}, rows, summarise(rows, OPTIONS), OPTIONS))


def test_foreign_text_is_escaped(record, predictions, summary):
    record["versions"]["<script>alert(1)</script>"] = "<b>"
    assert "<script" not in render(record, predictions, summary, OPTIONS)


def test_many_suppressed_values_are_only_counted(record, make_predictions):
    predictions = make_predictions()
    index = predictions.column_names.index("etiology")
    names = [f"value-{i}" for i in range(len(predictions))]
    many = predictions.set_column(index, "etiology", [names])
    html = render(record, many, summarise(many, OPTIONS), OPTIONS)
    assert "600 further values" in html and "value-7" not in html


def test_write_report_puts_the_page_below_the_output(tmp_path, record, predictions, summary):
    uri = write_report(str(tmp_path), record, predictions, summary, OPTIONS)
    assert uri == f"{tmp_path}/reports/{record['run_id']}/index.html"
    assert storage.read_bytes(uri).startswith(b"<!DOCTYPE html>")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH to lay the page out")
def test_a_browser_shows_the_page_without_sideways_scrolling(tmp_path, html):
    # The page's own policy forbids scripts; the copy under test has one that measures.
    probe = "<script>document.title = 'wide ' + Math.max(...[document.documentElement, ...document.querySelectorAll("
    probe += "'.scroll')].map(e => e.scrollWidth - e.clientWidth))</script></body>"
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace("</body>", probe)
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--window-size=1280,2000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", "--hide-scrollbars"]
    uri = (tmp_path / "index.html").as_uri()
    subprocess.run(["chromium", *options, uri], check=True, capture_output=True, timeout=60)
    assert (tmp_path / "page.png").stat().st_size > 50_000
    shown = subprocess.run(["chromium", *options[:-2], "--dump-dom", uri], check=True, capture_output=True, timeout=60)
    assert "<title>wide 0</title>" in shown.stdout.decode()
