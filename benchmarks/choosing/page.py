"""The tables of ``docs/fisher.md`` from the figures in ``results/``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from choosing import figures
from choosing.estimates import ESTIMATES
from choosing.structures import STRUCTURES
from choosing.subject import VOCABULARY

BEGIN, END = "<!-- estimators: begin -->", "<!-- estimators: end -->"
DOCS = Path(__file__).resolve().parents[2] / "docs"

Stages = figures.Stages
Row = dict[str, Any]


def write(stages: Stages) -> None:
    """Put the tables between their markers and the plots beside the page."""
    path = DOCS / "fisher.md"
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{tables(stages)}\n{END}{after}", encoding="utf-8")
    figures.draw(stages, DOCS / "images")


def tables(stages: Stages) -> str:
    """All tables, in Markdown."""
    stages_in_words = "; ".join(f"*{figures.title(n, s)}*" for n, s in stages.items())
    about = next(iter(stages.values()))["about"]
    parts = [
        f"Measured at {stages_in_words}; the same {about['examples']} held-out "
        f"rows with {about['tokens']} tokens. Cells are {' / '.join(stages)}.",
        _estimates(stages),
        _calibration(stages),
        _structures(stages),
    ]
    return "\n\n".join(parts)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(value: float) -> str:
    size = 100 * abs(value)
    return f"{size:.0f}" if size >= 9.95 else f"{size:.1f}"


def _signed(row: Row) -> str:
    text = ("−" if row["trace_bias"] < 0 else "+") + _percent(row["trace_bias"])
    return f"{text} ± {_percent(row['trace_bias_se'])}" if "trace_bias_se" in row else text


def _off(row: Row) -> str:
    # A distance below what the repeats can resolve is no finding.
    limit = row.get("diagonal_bias_noise", 0.0)
    return (
        f"< {_percent(limit)}" if row["diagonal_bias"] < limit else _percent(row["diagonal_bias"])
    )


def _sd(row: Row, value: Callable[[Row], float], theory: str) -> str:
    if "trace_sd" not in row:
        return "0"
    text = _percent(value(row))
    return f"{text} ({_percent(row[theory])})" if theory in row else text


def _estimates(stages: Stages) -> str:
    costs = _of(stages, "costs")
    columns: dict[str, Callable[[Row], str]] = {
        "trace: bias %": _signed,
        "trace: sd %": lambda row: _sd(row, lambda r: r["trace_sd"][0], "theory_trace_sd"),
        "diagonal: bias %": _off,
        "diagonal: sd %": lambda row: _sd(row, lambda r: r["diagonal_sd"], "theory_diagonal_sd"),
        "element: sd %": lambda row: _sd(row, lambda r: r["element_sd"], "theory_element_sd"),
        "Spearman": lambda row: f"{row['spearman']:.2f}",
    }
    rows = []
    for name in ESTIMATES:
        cells = [
            " / ".join(cell(s[name]) if name in s else "–" for s in stages.values())
            for cell in columns.values()
        ]
        rows.append([name, *cells, _cost(costs, name)])
    worst = max(s["type-2"]["error"] for s in stages.values() if "type-2" in s)
    about = next(iter(stages.values()))["about"]
    passes = about["tokens"] // about["examples"] * VOCABULARY
    rows.append(["type-2", "0", "0", f"{100 * worst:.0e}", "0", "0", "1.00", f"{passes} passes"])
    return _markdown(["estimate", *columns, "cost"], rows)


def _calibration(stages: Stages) -> str:
    rows = []
    for name in ESTIMATES:
        found = [s[name] for s in stages.values() if name in s]
        if "calibration_exact" in found[0]:
            cells = [f"{r['calibration_exact']:.2f}, {_ratio(r['calibration'])}" for r in found]
            rows.append([f"{name}, same rows", "drawn labels", " / ".join(cells)])
    for name, row in _of(stages, "fresh").items():
        rows.append([f"{name}, fresh rows", "rows", f"{_ratio(row['calibration'])}"])
    header = ["estimate", "what is random", "reported standard error over the true one"]
    return _markdown(header, rows)


def _ratio(values: Sequence[float]) -> str:
    middle, low, high = values
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _structures(stages: Stages) -> str:
    stages = {name: s for name, s in stages.items() if "structures" in s}
    costs, kinds = _of(stages, "costs"), list(_of(stages, "structures"))
    rows = []
    for name in STRUCTURES:
        cells = [" / ".join(_share(s["structures"][kind][name]) for s in stages.values())
                 for kind in kinds]  # fmt: skip
        kept = f"{costs[name]['numbers']:,}" if name in costs else "–"
        rows.append([name, kept, _cost(costs, name), *cells])
    header = ["structure", "numbers kept", "cost", *(f"{kind}, %" for kind in kinds)]
    return _markdown(header, rows)


def _of(stages: Stages, part: str) -> Row:
    """What was measured at one stage only."""
    return next((s[part] for s in stages.values() if part in s), {})


def _cost(costs: Row, name: str) -> str:
    return f"{costs[name]['ratio']:.1f}" if name in costs else "–"


def _share(found: Row) -> str:
    low, high = found["interval"]
    return f"{_percent(found['median'])} ({_percent(low)}–{_percent(high)})"
