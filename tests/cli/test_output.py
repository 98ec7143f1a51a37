"""What values look like on a screen and in JSON."""

from __future__ import annotations

import json
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from dhtdata.cli.output import Output, _Console, fit, percent, rows_table, size
from dhtdata.cli.summary import bars
from dhtdata.cli.values import CELL_CHARACTERS, cell, to_json
from dhtdata.formats.statistics import Histogram

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.decimals(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(value=values)
def test_a_cell_is_one_short_line_of_printable_text(value: Any) -> None:
    text = cell(value)
    assert text.isprintable() and len(text) <= CELL_CHARACTERS


@given(value=values)
def test_every_value_has_a_strict_json_form(value: Any) -> None:
    json.loads(json.dumps(to_json(value), allow_nan=False))


@pytest.mark.parametrize(
    ("value", "form"),
    [(b"\0\1", {"base64": "AAE="}), (float("nan"), "nan"), (Decimal("1.50"), "1.50"), (("a", 1), ["a", 1])],
)
def test_values_that_json_lacks_become_text(value: Any, form: Any) -> None:
    assert to_json(value) == form


@given(part=st.integers(0, 10**15), more=st.integers(1, 10**15))
def test_a_part_is_never_shown_as_100_percent(part: int, more: int) -> None:
    assert percent(part, part + more) != "100%"
    assert percent(part, part) == "100%"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 19, "1.5 MiB"),
        (250 << 30, "250 GiB"),
        (1 << 62, "4096 PiB"),
    ],
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert size(count) == text


def test_a_json_result_is_exactly_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.note("not shown")
    with output.progress("working") as report:
        report(1, 2)
    with output.status_line() as show:
        assert show is None
    output.result({"text": "two\nlines, ünïcode"}, "not shown")
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.count("\n") == 1 and json.loads(shown.out) == {"text": "two\nlines, ünïcode"}


def test_a_result_below_a_live_view_takes_its_place_and_is_not_wiped_out(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    monkeypatch.setenv("TERM", "xterm")
    output = Output(as_json=False)
    output._out = output._err = _Console(file=screen, force_terminal=True, width=80, height=24)
    with output.live(Text("1\n2\n3")) as seen:
        assert seen
        output.result({}, "the result")
    before, _, after = screen.getvalue().partition("the result")
    up = "\x1b[1A"
    # Up from the line below the third: once before the result, and not between it and the end of the next drawing.
    assert before.count(up) >= 3
    assert up not in after.partition("3")[0]


def test_below_a_live_view_the_cursor_rests_on_an_empty_line_where_an_echoed_key_does_not_wrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = StringIO()
    monkeypatch.setenv("TERM", "xterm")
    output = Output(as_json=False)
    output._err = _Console(file=screen, force_terminal=True, width=80, height=24)
    with output.live(Text("1\n" + "2" * 80)):
        drawn = screen.getvalue()
    assert drawn.endswith("2" * 80 + "\n")
    assert screen.getvalue().removeprefix(drawn).count("\x1b[1A") >= 3, "two lines, and the one of the cursor"


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_a_histogram_becomes_at_most_ten_bars_and_no_count_vanishes(counts: list[int]) -> None:
    drawn = bars(Histogram(of="values", low=0.0, high=1.0, counts=tuple(counts)))
    assert 1 <= len(drawn) <= 10
    assert ("█" in drawn) == any(counts)
    assert (" " in drawn) <= (0 in counts)


@given(wanted=st.lists(st.integers(1, 500), min_size=1, max_size=8), width=st.integers(40, 200))
def test_columns_share_a_width_and_a_short_one_is_never_cut_before_a_longer_one(wanted: list[int], width: int) -> None:
    fitted = fit(wanted, width)
    assert sum(fitted) == min(width, sum(wanted))
    assert all(1 <= given <= want for given, want in zip(fitted, wanted, strict=True))
    longest_whole = max((want for given, want in zip(fitted, wanted, strict=True) if given == want), default=0)
    assert all(given == want or want >= longest_whole for given, want in zip(fitted, wanted, strict=True))


def test_a_short_column_is_shown_however_long_the_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).result({}, rows_table(["id", "text", "more"], [["1234567", "x" * 500, "y" * 90]], 100))
    shown = capsys.readouterr().out
    assert "1234567" in shown and max(map(len, shown.splitlines())) <= 100


def test_rows_of_many_columns_show_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"column{number}" for number in range(30)]
    Output(as_json=False).result({}, rows_table(names, [[f"value{number}" for number in range(30)]], 100))
    shown = capsys.readouterr().out
    assert all(f"value{number}" in shown for number in range(30))
