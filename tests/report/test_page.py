import base64
import hashlib
import json
import re

import pytest

from fisherscope.errors import StoreError
from fisherscope.report import render, write_report
from fisherscope.report.figures import REGISTRY
from fisherscope.report.page import SECTIONS
from report.factory import make_results

NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)> & a long task name that goes on and on and on 1',
    '"><img src=x onerror=alert(1)> & a long task name that goes on and on and on 2',
    "{{ 7*7 }}{% raw %} $x^2$ \u202ecode",
)


@pytest.fixture(scope="module")
def page():
    return render(make_results(4, 6))


def test_same_results_same_bytes(page):
    # Catches dates, random identifiers and orders of sets.
    assert render(make_results(4, 6)) == page


def test_results_come_back_untouched():
    # Catches rendering that edits what it is given.
    results = make_results(2, 2)
    before = json.dumps(results)
    render(results)
    assert json.dumps(results) == before


def test_nothing_is_loaded(page, read_page):
    # Catches a font, script, image or style from anywhere but the page itself.
    loaded = [
        (tag, attributes)
        for tag, attributes in read_page(page).elements
        for key in ("src", "href", "srcset", "data", "action", "poster")
        if not (attributes.get(key) or "#").startswith("#")
    ]
    assert loaded == []
    assert not re.search(r"https?://|@import|@font-face|url\((?!#)", page)
    tags = {tag for tag, _ in read_page(page).elements}
    assert not {"link", "iframe", "object", "embed", "img"} & tags


def test_policy_admits_this_script_only(page, read_page):
    # Catches a script that the browser would refuse, and a policy that would admit another.
    (policy,) = (m["content"] for m in read_page(page).all("meta") if m.get("http-equiv"))
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_markup_in_names_stays_text(read_page):
    # Catches an unescaped name anywhere: in prose, tables, tooltips, labels, settings, alerts.
    results = make_results(4, 3, names=NASTY)
    results["similarity"] = [r for r in results["similarity"] if r["metric"] == "cosine"]
    results["model"]["source"] = NASTY[1]
    results["model"]["coverage"] = {NASTY[0]: {"tensors": 1, "parameters": 2}}
    results["settings"]["parameters"] = [NASTY[0], NASTY[1]]
    results["run"]["command"] = NASTY[0]
    results["damage"]["definition"] = NASTY[0]
    for i, row in enumerate(results["importance"][NASTY[0]]):
        row["module"] = f"{NASTY[0]}{i % 3}"
    for alert in results["alerts"]:
        alert["message"] = alert["rule"] = NASTY[1]
    page = read_page(render(results))
    tags = {tag for tag, _ in page.elements}
    assert "img" not in tags and len(page.all("script")) == 1
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert page.unbalanced == [] and page.open == []
    assert page.text.count("<script>alert(1)</script>") > 8
    assert "{{ 7*7 }}" in page.text and "\u202e" not in page.text


def test_every_element_closes_and_no_id_repeats(page, read_page):
    # Catches a broken template, and SVGs whose identifiers collide.
    read = read_page(page)
    assert read.unbalanced == [] and read.open == []
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    assert set(SECTIONS) <= set(ids)
    targets = [a["href"][1:] for a in read.all("a")]
    assert set(targets) <= set(ids)


def test_every_figure_has_caption_reading_and_the_same_table(page, results):
    # Catches a figure without its numbers: the table in the page is the data's own, row for row.
    for spec in REGISTRY:
        data = spec.build(results)
        section = page.partition(f'<section id="{spec.id}"')[2].partition("</section>")[0]
        assert section.count("<svg") == len(data.views()) >= 1
        assert "How to read it." in section and '<p class="caption">' in section
        assert re.findall(r'role="img" aria-label="[^"]+"', section)
        body = section.partition("<tbody>")[2].partition("</tbody>")[0]
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]
        assert rows == data.table().cells()
        assert len(rows) > 0


def test_page_serves_light_dark_and_print(page):
    # Catches a mode dropped from the style, and SVG colours that no mode defines.
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    used = set(re.findall(r"var\(--(\w+)", page))
    light = page.partition(":root {")[2].partition("}")[0]
    dark = page.partition("prefers-color-scheme: dark")[2].partition("}")[0]
    assert used <= set(re.findall(r"--([\w-]+):", light))
    assert set(re.findall(r"--([\w-]+):", dark)) == set(re.findall(r"--([\w-]+):", light))


def test_one_task_says_why_figures_are_absent(read_page):
    # Catches a crash on one task, an empty figure, or a link to what is not there.
    page = read_page(render(make_results(1, 2)))
    assert "it needs at least two" in page.text and "Not computed: one task." in page.text
    assert "#similarity" not in [a["href"] for a in page.all("a")]


@pytest.mark.parametrize("shape", [(3, 0), (12, 2), (2, 40)])
def test_odd_shapes_render(shape, read_page):
    # Catches layouts that divide by zero layers, or choke on many tasks or layers.
    results = make_results(*shape)
    results["similarity"] = [r for r in results["similarity"] if r["metric"] == "cosine"]
    page = read_page(render(results))
    assert page.unbalanced == [] and len(page.all("svg")) == 6


def test_missing_everything(results, blank, read_page):
    # Catches None reaching the reader, and a crash on a run that was cut short.
    for content in (blank(results), {"format": 1, "tasks": []}):
        page = read_page(render(content))
        assert page.unbalanced == []
        assert not re.search(r"\b(None(?! of)|nan|inf|Undefined)\b", page.text)
    assert "No alerts" in page.text


def test_missing_single_values(results):
    # Catches arithmetic on None: each number of the results is missing once, by kind.
    for rows in (results["tasks"], results["similarity"], results["damage"]["cells"],
                 results["overlap"], results["importance"]["math"]):  # fmt: skip
        for i, key in enumerate(list(rows[0])):
            if key not in {"name", "task_a", "task_b", "metric", "on", "by", "module"}:
                rows[i % len(rows)][key] = None
    render(results)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 2, "tasks": []}, "format 2, this version draws format 1"),
        ([], "format 'list'"),
        ({"format": 1}, "is not a list of tasks"),
        ({"format": 1, "tasks": [{"n_examples": 3}]}, "is not a list of tasks"),
    ],
)
def test_foreign_content_is_refused(content, message):
    # Catches a KeyError, or a silent empty page, for a file that is no results file.
    with pytest.raises(StoreError, match=message):
        render(content)


def test_report_is_written_whole(tmp_path):
    # Catches a missing folder, a wrong encoding, and temporary files left behind.
    results = make_results(1, 2)
    target = tmp_path / "new" / "report.html"
    assert write_report(results, str(target)) == target
    assert target.read_text(encoding="utf-8") == render(results)
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    # Catches half a page in place of a whole one: the disk fails before the rename.
    results = make_results(1, 2)
    target = tmp_path / "report.html"
    target.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StoreError, match=r"report\.html"):
        write_report(results, target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_in_the_way_is_named(tmp_path):
    # Catches a bare IsADirectoryError.
    results = make_results(1, 2)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StoreError, match=r"report\.html"):
        write_report(results, tmp_path / "report.html")
