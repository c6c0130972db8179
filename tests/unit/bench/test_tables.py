"""Rows on their way into docs/benchmarks.md."""

from bench.report import Row, tables
from bench.tables import markdown_table


def test_rows_of_several_tables_are_set_apart() -> None:
    rows: list[Row] = [{"table": "a", "x": 1}, {"table": "b", "y": 2}, {"table": "a", "x": 3}]
    assert tables(rows) == [[{"x": 1}, {"x": 3}], [{"y": 2}]]


def test_rows_that_name_no_table_are_one() -> None:
    assert tables([{"x": 1}, {"y": 2}]) == [[{"x": 1}, {"y": 2}]]
    assert markdown_table([{"x": 1}, {"x": 2000}]).splitlines() == [
        "| x |",
        "| ---: |",
        "| 1 |",
        "| 2,000 |",
    ]
