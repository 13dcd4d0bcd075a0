"""Tables: typed columns over raw values; the page and the terminal print the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fisherscope.report import text

Kind = Literal["text", "integer", "number", "percent", "flag"]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: Name of the field in each row.
        label: Heading.
        kind: How values are printed and sorted.
        hint: Longer explanation, shown on hover.
    """

    key: str
    label: str
    kind: Kind = "number"
    hint: str = ""

    @property
    def numeric(self) -> bool:
        """Whether values are aligned and sorted as numbers.

        Returns:
            False for text and flags.
        """
        return self.kind not in {"text", "flag"}

    def show(self, value: Any) -> str:
        """One value as text.

        Args:
            value: Raw content of a cell.

        Returns:
            The printed form; a dash where there is no value.
        """
        if self.kind == "text":
            return text.MISSING if value is None else str(value)
        if self.kind == "flag":
            return text.MISSING if value is None else ("yes" if value else "no")
        amount = text.number(value)
        if amount is None:
            return text.MISSING
        if self.kind == "integer":
            return f"{amount:,.0f}"
        if self.kind == "percent":
            return f"{text.significant(100 * amount)}%"
        return text.significant(amount)


@dataclass(frozen=True)
class Table:
    """Columns and rows of raw values.

    Attributes:
        columns: The columns, left to right.
        rows: One mapping per row; missing keys are missing values.
        caption: What the table holds, for screen readers.
    """

    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    caption: str

    def cells(self) -> list[list[str]]:
        """Every value as printed.

        Returns:
            One list per row, in the order of the columns.
        """
        return [[column.show(row.get(column.key)) for column in self.columns] for row in self.rows]


def tasks_table(results: Mapping[str, Any]) -> Table:
    """One row per task: how much data, loss, size and shape of its Fisher.

    Args:
        results: A results dictionary.

    Returns:
        The table.
    """
    unit = str(results.get("settings", {}).get("unit") or "unit")
    columns = (
        Column("name", "Task", "text"),
        Column("n_examples", "Examples", "integer"),
        Column("n_tokens", "Tokens", "integer", "Supervised label positions"),
        Column("loss", "Loss", "number", "Nats per token"),
        Column("loss_se", "±", "number", "Standard error of the loss"),
        Column("trace", "Trace", "number", f"Sum of the Fisher diagonal, mean per {unit}"),
        Column("trace_se", "±", "number", "Standard error of the trace over examples"),
        Column("mean_fisher", "Mean", "number", "Trace divided by the number of parameters"),
        Column("participation", "Participation", "integer", "(Σf)²/Σf², in parameters"),
        Column("top1_mass", "Top 1%", "percent", "Share of the trace in the top 1% of parameters"),
        Column("split_half_spearman", "Split-half ρ", "number", "Rank agreement of two halves"),
        Column("skipped", "Skipped", "integer", "Examples left out: non-finite scores"),
        Column("seconds", "Seconds"),
    )
    rows = [{**task, "skipped": _how_many(task.get("skipped"))} for task in results["tasks"]]
    return Table(columns, tuple(rows), "Tasks with their data, loss and Fisher")


def coverage_table(results: Mapping[str, Any]) -> Table:
    """Which rule covered how many tensors and parameters.

    Args:
        results: A results dictionary.

    Returns:
        The table.
    """
    coverage = (results.get("model") or {}).get("coverage") or {}
    columns = (
        Column("rule", "Rule", "text"),
        Column("tensors", "Tensors", "integer"),
        Column("parameters", "Parameters", "integer"),
    )
    rows = [{"rule": rule, **(counts or {})} for rule, counts in coverage.items()]
    return Table(columns, tuple(rows), "Parameters by the rule that covered them")


def asymmetry_table(results: Mapping[str, Any]) -> Table:
    """Which task of each pair is hurt more by a step of the other.

    Args:
        results: A results dictionary.

    Returns:
        One row per pair and quantity.
    """
    columns = (
        Column("task_a", "A", "text"),
        Column("task_b", "B", "text"),
        Column("quantity", "Quantity", "text", "index: no step size; the others nats per token"),
        Column("a", "Damage to A", "number", "By a step of B"),
        Column("b", "Damage to B", "number", "By a step of A"),
        Column("difference", "Difference", "number", "Damage to A less damage to B"),
        Column("difference_low", "2.5%", "number"),
        Column("difference_high", "97.5%", "number"),
        Column("more_fragile", "Hurt more", "text"),
        Column("outcome", "Outcome", "text"),
    )
    return Table(columns, tuple(results.get("asymmetry") or ()), "Which of two tasks is hurt more")


def uncertainty_table(results: Mapping[str, Any]) -> Table:
    """How good the predictions of a classifier are, before and after the Fisher's uncertainty.

    Args:
        results: A results dictionary.

    Returns:
        One row per task, predictor and measure.
    """
    columns = (
        Column("task", "Task", "text"),
        Column("predictor", "Predictor", "text"),
        Column("measure", "Measure", "text"),
        Column("value", "Value", "number"),
        Column("low", "2.5%", "number"),
        Column("high", "97.5%", "number"),
        Column("change", "Change", "number", "Against the model as it is, same examples"),
        Column("change_low", "2.5%", "number"),
        Column("change_high", "97.5%", "number"),
        Column("outcome", "Outcome", "text"),
    )
    return Table(columns, tuple(results.get("uncertainty") or ()), "Quality of predictions")


def _how_many(skipped: Any) -> float | None:
    # Skipped examples arrive as a count or as a list of ids.
    if isinstance(skipped, Sequence) and not isinstance(skipped, str):
        return len(skipped)
    return text.number(skipped)
