"""Rows survive Parquet, and a row of the wrong shape does not."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.records import TrainRow, Verdict, content_hash, from_table, read_records, to_table, write_records

ROWS = st.builds(
    TrainRow,
    id=st.text(), db_id=st.text(), prompt=st.text(), chosen=st.text(), rejected=st.none() | st.text(),
    reward=st.none() | st.integers(0, 1), source=st.text(), replay=st.booleans(),
)  # fmt: skip


@given(st.lists(ROWS, max_size=5))
def test_rows_come_back_as_they_were(rows: list[TrainRow]) -> None:
    assert from_table(to_table(rows, TrainRow), TrainRow) == rows


def test_files_and_directories_read_alike(tmp_path: Path) -> None:
    rows = [TrainRow(str(i), "d", "p", "c", None, None, "label") for i in range(7)]
    write_records(tmp_path / "parts" / "0.parquet", rows[:3], TrainRow, chunk=2)
    write_records(tmp_path / "parts" / "1.parquet", rows[3:], TrainRow)
    assert read_records(tmp_path / "parts", TrainRow) == rows
    write_records(tmp_path / "empty.parquet", [], TrainRow)
    assert read_records(tmp_path / "empty.parquet", TrainRow) == []


def test_a_missing_column_is_an_error() -> None:
    with pytest.raises(KeyError):
        from_table(pa.table({"id": ["1"]}), Verdict)


def test_hashes_ignore_key_order_and_nothing_else() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash("a", "b") != content_hash("ab")
