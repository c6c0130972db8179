"""Rows on their way into docs/benchmarks.md."""

from bench.report import Row, named_tables
from bench.tables import captioned, markdown_table


def test_rows_of_several_tables_are_set_apart() -> None:
    rows: list[Row] = [{"table": "a", "x": 1}, {"table": "b", "y": 2}, {"table": "a", "x": 3}]
    assert named_tables(rows) == {"a": [{"x": 1}, {"x": 3}], "b": [{"y": 2}]}


def test_rows_that_name_no_table_are_one() -> None:
    assert named_tables([{"x": 1}, {"y": 2}]) == {"": [{"x": 1}, {"y": 2}]}
    assert markdown_table([{"x": 1}, {"x": 2000}]).splitlines() == [
        "| x |",
        "| ---: |",
        "| 1 |",
        "| 2,000 |",
    ]


def test_a_table_stands_under_its_name() -> None:
    rows: list[Row] = [{"x": 1}]
    assert captioned("found elsewhere", rows) == ["**Found elsewhere**", markdown_table(rows)]
    assert captioned("", rows) == [markdown_table(rows)]
