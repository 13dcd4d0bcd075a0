import pytest

from fisherscope.errors import StoreError
from fisherscope.report import summary
from fisherscope.report.text import width
from report.factory import make_results


def _rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_numbers_are_those_of_the_results(results):
    # Catches an error beside another value, and values of another task.
    rows = _rows(summary(results))
    assert rows[0] == ["Task", "n", "Metric", "Value", "±"]
    start = {row[0]: i for i, row in enumerate(rows) if row[0]}
    for task in results["tasks"]:
        here = {row[2]: row for row in rows[start[task["name"]] :][:6]}
        for label, key in (("loss", "loss"), ("trace", "trace")):
            assert float(here[label][3]) == pytest.approx(task[key], rel=1e-3)
            assert float(here[label][4]) == pytest.approx(task[f"{key}_se"], rel=0.06)
        assert here["mean Fisher"][4] == "–"
        assert rows[start[task["name"]]][1] == f"{task['n_examples']:,}"


def test_damage_rows_have_standard_errors(results):
    # Catches the half-width of an interval under a column of standard errors.
    rows = _rows(summary(results))
    cells = [c for c in results["damage"]["cells"] if c["on"] != c["by"]]
    worst = max(cells, key=lambda c: c["measured"])
    index = next(i for i, row in enumerate(rows) if "←" in row[0])
    assert rows[index][0] == f"{worst['on']} ← {worst['by']}"
    assert float(rows[index + 1][3]) == pytest.approx(worst["measured"], rel=1e-3)
    assert float(rows[index + 1][4]) == pytest.approx(0.0018 / 1.96, rel=0.06)


def test_columns_line_up_whatever_the_script():
    # Catches misaligned columns with wide characters, and a bar in a name splitting its cell.
    results = make_results(3, 2, names=("数学の問題", "a|b", "plain"))
    lines = [line for line in summary(results).splitlines() if line.startswith("|")]
    assert len({width(line) for line in lines}) == 1
    assert any("a\\|b" in line for line in lines)


def test_no_escape_sequence_reaches_the_terminal():
    # Catches a task name that recolours or retitles the terminal, or starts a line of its own.
    results = make_results(2, 2, names=("evil\x1b]0;owned\x07\nname", "b"))
    text = summary(results)
    assert "\x1b" not in text and "\x07" not in text and "evil\ufffd]0;owned\ufffd name" in text


def test_alerts_and_finding_follow(results):
    # Catches a terminal that is calmer than the page.
    text = summary(results)
    assert "- RED few-examples: Task dialogue has 8 examples" in text
    assert text.index("A step for ") < text.index("- RED") < text.index("- AMBER")


def test_summary_of_nothing(results, blank):
    # Catches a crash where values are missing, and a summary of a foreign file.
    assert "3 tasks" in summary(blank(make_results(3, 2)))
    with pytest.raises(StoreError, match="format None"):
        summary({})
