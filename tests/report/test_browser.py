"""What only a browser can tell: layout, sorting, dark mode. Needs Chromium."""

import json
import os
import re
import shutil
import subprocess

import pytest

from fisherscope.report import render
from report.factory import make_results

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
    pytest.mark.skipif(bool(os.environ.get("CI")), reason="CI machines run without a browser"),
]
LONG = (
    '"><img src=x onerror=alert(1)> & a long task name that goes on and on 1',
    '"><img src=x onerror=alert(1)> & a long task name that goes on and on 2',
    "数学の問題を解くための日本語データセット",
    "W" * 100,
    "code",
)
# Runs after the page's own script; the page's policy is taken out to let it in.
PROBE = """
const report = {};
const box = (e) => e.getBoundingClientRect();
const fold = [...document.querySelectorAll(".tile, .alerts li")].map((e) => box(e).bottom);
report.fold = Math.max(...fold);
report.wide = document.documentElement.scrollWidth - window.innerWidth;
report.dark = getComputedStyle(document.body).backgroundColor;
report.ink = getComputedStyle(document.querySelector("#damage svg text")).fill;
report.cut = [];
report.over = [];
report.labels = 0;
for (const views of document.querySelectorAll(".views")) {
  const tabs = [...views.querySelectorAll("input")];
  for (let i = 0; i < Math.max(1, tabs.length); i++) {
    if (tabs.length) tabs[i].checked = true;
    const shown = [...views.querySelectorAll("figure")].filter((f) => box(f).height > 0);
    if (shown.length !== 1) report.over.push("views shown: " + shown.length);
    const frame = box(shown[0].querySelector("svg"));
    const labels = [...shown[0].querySelectorAll("svg text")];
    report.labels += labels.length;
    for (const label of labels) {
      const b = box(label);
      const out = Math.max(frame.left - b.left, b.right - frame.right, frame.top - b.top,
        b.bottom - frame.bottom);
      if (out > 1) report.cut.push(label.textContent + " by " + out.toFixed(1));
    }
    const flat = labels.filter((l) => !/rotate\\((?!-?0[ )])/.test(l.outerHTML));
    for (let a = 0; a < flat.length; a++) for (let c = a + 1; c < flat.length; c++) {
      const [p, q] = [box(flat[a]), box(flat[c])];
      const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (x > 1 && y > 4) report.over.push(flat[a].textContent + " / " + flat[c].textContent);
    }
  }
}
const read = (table, k) => [...table.tBodies[0].rows].map((r) => r.cells[k].textContent);
const table = document.querySelector("#importance table.sortable");
const head = (k) => table.tHead.rows[0].cells[k];
report.before = read(table, 4);
head(4).querySelector("button").click();
report.down = read(table, 4);
report.sorted = head(4).getAttribute("aria-sort");
head(4).querySelector("button").click();
report.up = read(table, 4);
head(2).querySelector("button").click();
report.text = read(table, 2);
report.marks = table.querySelectorAll("[aria-sort]").length;
document.body.textContent = "PROBE" + JSON.stringify(report) + "PROBE";
"""


def _without_policy(page):
    return re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page)


def _visit(tmp_path, results, *options):
    page = _without_policy(render(results))
    page = page.replace("</body>", f"<script>{PROBE}</script></body>")
    found = re.search(r"PROBE(\{.*\})PROBE", _dom(tmp_path, page, *options), re.DOTALL)
    assert found
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def _dom(tmp_path, page, *options):
    """The document as it is when its scripts have run."""
    source = tmp_path / "page.html"
    source.write_text(page, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,800", *options,
        "--dump-dom", source.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return done.stdout


def test_layout_sorting_and_light_mode(tmp_path):
    # Catches labels cut off or on top of each other, tiles and alerts below the fold of a
    # laptop, a page that scrolls sideways, tabs that show two drawings, and sorting as text.
    results = make_results(4, 12, sparsities=(0.5, 0.9, 0.99))
    results["importance"]["code"][5]["mean"] = None
    report = _visit(tmp_path, results)
    assert report["cut"] == [] and report["over"] == [] and report["labels"] > 300
    assert report["fold"] < 800 and report["wide"] <= 0
    assert report["dark"] == "rgb(244, 246, 248)"
    numbers = [float(v) for v in report["before"] if v != "–"]
    assert [float(v) for v in report["down"][:-1]] == sorted(numbers, reverse=True)
    assert report["down"][-1] == report["up"][-1] == "–"
    assert [float(v) for v in report["up"][:-1]] == sorted(numbers)
    assert report["text"] == sorted(report["text"], reverse=True)
    assert report["sorted"] == "descending" and report["marks"] == 1


def test_long_names_and_dark_mode(tmp_path):
    # Catches long or wide names cut off or overlapping, and ink that stays dark on a dark page.
    report = _visit(
        tmp_path, make_results(5, 3, names=LONG), "--blink-settings=preferredColorScheme=0"
    )
    assert report["cut"] == [] and report["over"] == []
    assert report["fold"] < 800 and report["wide"] <= 0
    assert report["dark"] == "rgb(15, 19, 23)" and report["ink"] == "rgb(230, 234, 238)"


def _hostile(mark):
    """Texts that would each leave a mark of their own on the document if they were markup."""
    own = [f"document.documentElement.dataset.{mark}{n}=1" for n in range(5)]
    return (
        f"<script>{own[0]}</script>",
        f"</script><script>{own[1]}</script>",
        f'"><img src=x onerror="{own[2]}">',
        f"'></title></style></svg><img src=x onerror={own[3]}>",
        f"<svg onload='{own[4]}'></svg>",
    )


def test_text_of_a_run_is_never_run(tmp_path):
    # Planted: templates that escape nothing.
    # Catches names and texts that reach the page as markup, in a real browser and without the
    # page's own policy, which would hide the hole. The same texts in a page that does not escape
    # them leave their marks: the test would see it.
    planted = "".join(f"<div>{text}</div>" for text in _hostile("planted"))
    dom = _dom(tmp_path, f"<html><body>{planted}</body></html>")
    root = re.search(r"<html[^>]*>", dom)
    assert root and len(re.findall(r"data-planted\d", root[0])) == 5, root
    texts = _hostile("owned")
    results = make_results(len(texts), 2, names=texts)
    results["model"]["source"], results["model"]["class"] = texts[3], texts[1]
    results["tasks"][0]["skipped"] = list(texts)
    page = _without_policy(render(results))
    assert page.count("dataset.owned") > 20
    root = re.search(r"<html[^>]*>", _dom(tmp_path, page))
    assert root and "owned" not in root[0]
