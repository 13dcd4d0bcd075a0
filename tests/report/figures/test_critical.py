import pytest

from fisherscope.report.figures import critical, palette
from report.percolated import MODELS, TASKS, content


@pytest.fixture
def results():
    return content()


def test_candidates_come_with_their_ranks(results, drawn, texts):
    # Catches a cost, an interval or a rank of another unit, and orders that swap their columns.
    data = critical.build(results)
    assert data.models == MODELS and data.tasks == TASKS and data.levels == ("weight", "neuron")
    assert data.ranked == ("fisher", "obd", "magnitude", "gradient")
    figure, root = drawn(data)[0]
    for task, axes in zip(TASKS, figure.axes[1:], strict=True):
        mine = data.of(MODELS[0], "weight", task)[:8]
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        assert [line.get_xdata()[0] for line in dots] == [row["cost"] for row in mine]
        filled = [line.get_markerfacecolor() != palette.CARD for line in dots]
        assert filled == [row["resolved"] for row in mine]
        bars = [line for line in axes.lines if len(line.get_xdata()) == 2][: len(mine)]
        assert [list(b.get_xdata()) for b in bars] == [[r["low"], r["high"]] for r in mine]
    words = texts(root)
    first = data.of(MODELS[0], "weight", TASKS[0])[0]
    start = words.index(first["unit"])
    ranks = [f"{first[f'rank_{order}']:,}" for order in data.ranked]
    assert words[start + 1 : start + 5] == ranks


def test_the_caption_names_the_most_costly(results):
    # Catches the first candidate of another task, and a doubtful one called sure.
    data = critical.build(results)
    first = data.of(MODELS[0], "weight", TASKS[0])[0]
    assert first["place"] == 1
    assert data.caption().startswith(f"For code of base the most costly weight is {first['unit']}")
    first["resolved"] = False
    assert "nats per token, not told apart from the next)" in data.caption()


def test_no_candidates():
    assert critical.build({}) is None and "candidates=0" in critical.FIGURE.absent({})
