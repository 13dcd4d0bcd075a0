from fisherscope.report.tables import Column, Table, coverage_table, tasks_table


def test_every_kind_prints_its_way():
    # Catches a percentage without its factor, or a missing value printed as None or nan.
    row = {"t": "x", "i": 1234567, "n": 0.000012345, "p": 0.1234, "f": False}
    columns = tuple(
        Column(key, key, kind)
        for key, kind in zip("tinpf", ("text", "integer", "number", "percent", "flag"), strict=True)
    )
    table = Table(columns, (row, {}), "both")
    assert table.cells() == [["x", "1,234,567", "1.234e-5", "12.34%", "no"], ["–"] * 5]
    assert [column.numeric for column in columns] == [False, True, True, True, False]


def test_not_finite_is_missing():
    # Catches "nan" in a table.
    assert Column("x", "x").show(float("nan")) == "–"


def test_tasks_table_has_every_task_and_counts_skipped(results):
    # Catches a dropped task, and a list of ids printed where a count belongs.
    results["tasks"][1]["skipped"] = ["a", "b", "c"]
    results["tasks"][2]["skipped"] = 2
    table = tasks_table(results)
    assert [row["name"] for row in table.rows] == [task["name"] for task in results["tasks"]]
    skipped = [column.key for column in table.columns].index("skipped")
    assert [row[skipped] for row in table.cells()] == ["0", "3", "2", "0"]


def test_coverage_may_be_missing(results):
    # Catches a crash on results that do not say what covered what.
    assert len(coverage_table(results).rows) == 3
    results["model"]["coverage"] = None
    assert coverage_table(results).rows == ()
