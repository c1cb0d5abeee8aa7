"""The canonical form of cells: a table of what drivers give, and what must hold for every value."""

import json
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.sandbox.cells import to_cell

EAST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, None),
        (True, 1),
        (7, 7),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (2**63, "9223372036854775808"),
        (10**5000, "1" + "0" * 5000),
        (0.1, 0.1),
        (math.inf, math.inf),
        (math.nan, "NaN"),
        ("ä\udc80", "ä\udc80"),
        (b"\xff", b"\xff"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"abc")[1:], b"bc"),
        (Decimal("3.000"), 3),
        (Decimal("-0.0"), 0),
        (Decimal("0E+50"), 0),
        (Decimal("1E+3"), 1000),
        (Decimal("0.10"), 0.1),
        (Decimal("3.3333333333333333"), 10 / 3),
        (Decimal("9223372036854775807"), 2**63 - 1),
        (Decimal("9223372036854775808.00"), "9223372036854775808"),
        (Decimal("1E+30"), str(10**30)),
        (Decimal("1234567890123456789012345678901234567890"), "1234567890123456789012345678901234567890"),
        (Decimal("1E-400"), "0." + "0" * 399 + "1"),
        (Decimal("NaN"), "NaN"),
        (Decimal("-Infinity"), -math.inf),
        (date(2024, 2, 29), "2024-02-29"),
        (datetime(2024, 2, 29, 13, 5), "2024-02-29 13:05:00"),
        (datetime(2024, 2, 29, 13, 5, 0, 250_000), "2024-02-29 13:05:00.25"),
        (datetime(2024, 2, 29, 1, 5, tzinfo=EAST), "2024-02-28 23:05:00+00:00"),
        (datetime(2024, 2, 28, 23, 5, tzinfo=UTC), "2024-02-28 23:05:00+00:00"),
        (datetime(1, 1, 1, 0, 0, tzinfo=EAST), "0001-01-01 00:00:00+02:00"),
        (time(13, 5, 0, 100), "13:05:00.0001"),
        (time(13, 5, tzinfo=EAST), "13:05:00+02:00"),
        (timedelta(0), "PT0S"),
        (timedelta(days=31), "P31D"),
        (timedelta(days=1, hours=2, minutes=3, seconds=4, microseconds=500_000), "P1DT2H3M4.5S"),
        (timedelta(hours=-26, minutes=-30), "-P1DT2H30M"),
        (timedelta(microseconds=1), "PT0.000001S"),
        (UUID("12345678-1234-5678-1234-567812345678"), "12345678-1234-5678-1234-567812345678"),
        (ip_address("10.0.0.1"), "10.0.0.1"),
        ([1, 2.0, None, "a", True], '[1,2,null,"a",true]'),
        ((Decimal("1.50"), b"\x01", date(2024, 1, 1)), r'[1.5,"\\x01","2024-01-01"]'),
        ({"b": [math.nan, math.inf], "a": {"ü": 2**70}}, '{"a":{"ü":1180591620717411303424},"b":["NaN","inf"]}'),
        ({1: "one", (2, 3): "pair"}, '{"1":"one","[2,3]":"pair"}'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_to_cell(value: object, cell: object) -> None:
    found = to_cell(value)
    assert (type(found), found) == (type(cell), cell)


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        to_cell(object())
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="deeply"):
        to_cell(deep)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.decimals(),
    st.text(),
    st.binary(),
    st.dates(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.times(),
    st.timedeltas(),
    st.uuids(),
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(values)
def test_every_cell_travels_and_equals_itself(value: object) -> None:
    cell = to_cell(value)
    back = msgpack.unpackb(
        msgpack.packb(cell, unicode_errors="surrogatepass"), use_list=False, unicode_errors="surrogatepass"
    )
    assert type(back) is type(cell)
    assert back == cell == to_cell(cell)
    assert hash(cell) == hash(to_cell(value))


same_kind = st.sampled_from(
    [
        st.integers(-(2**70), 2**70),
        st.timedeltas(),
        st.dates(),
        st.times(),
        st.datetimes(),
        st.datetimes(min_value=datetime(1950, 1, 1), timezones=st.timezones()),
        st.uuids(),
        st.lists(st.integers(0, 2) | st.text(max_size=1)),
        st.dictionaries(st.text(max_size=1), st.integers(0, 2)),
    ]
)


@given(same_kind.flatmap(lambda kind: st.tuples(kind, kind)))
def test_cells_of_one_kind_are_equal_exactly_when_the_values_are(pair: tuple[Any, Any]) -> None:
    one, other = pair
    if isinstance(one, datetime) and one.tzinfo:  # in Python, two clocks of one zone ignore `fold`
        one, other = one.astimezone(UTC), other.astimezone(UTC)
    assert (to_cell(pair[0]) == to_cell(pair[1])) is (one == other)


@given(st.decimals(allow_nan=False, places=3, min_value=-(10**12), max_value=10**12))
def test_short_decimals_are_not_mixed_up(value: Decimal) -> None:
    cell = to_cell(value)
    assert isinstance(cell, int | float)
    assert Decimal(repr(cell)) == value
    assert to_cell(value * 1000) == int(value * 1000)


@given(st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.booleans()))
def test_lists_are_json(value: list[Any]) -> None:
    text = to_cell(value)
    assert isinstance(text, str)
    assert json.loads(text) == value
