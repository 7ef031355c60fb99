"""Times as an operator gives them, also where clocks are put back and forward."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xoscar_idle.commands import times
from xoscar_idle.commands.times import REMEDY, UNKNOWN, brief, clock, day, since, until

BERLIN = ZoneInfo("Europe/Berlin")
"""In 2026 clocks are put forward on 29 March, from 2:00 to 3:00, and back on 25 October, from 3:00
to 2:00."""

ZONES = [
    *(timezone.utc, timezone(timedelta(hours=5, minutes=30)), BERLIN),
    *map(ZoneInfo, ("America/New_York", "Australia/Lord_Howe", "Pacific/Apia")),
]


def at(text: str, zone: tzinfo = BERLIN) -> float:
    """Unix time of what a clock shows, or, with an offset, of what that one shows."""
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=zone)).timestamp()


NOW = at("2026-05-02 09:00")


@pytest.mark.parametrize(
    ("given", "is_when"),
    [
        ("3:12", "2026-05-02 03:12"),
        ("03:12", "2026-05-02 03:12"),
        (" 03:12:30 ", "2026-05-02 03:12:30"),
        ("03:12:30.25", "2026-05-02 03:12:30.250"),
        ("03:12:30,123456", "2026-05-02 03:12:30.123456"),
        ("9:00", "2026-05-02 09:00"),
        ("9:01", "2026-05-01 09:01"),
        ("23:59:59", "2026-05-01 23:59:59"),
        ("0:00", "2026-05-02 00:00"),
        ("2026-05-01", "2026-05-01 00:00"),
        ("2026-05-01T03:12", "2026-05-01 03:12"),
        ("2026-05-01 03:12:30.5", "2026-05-01 03:12:30.500"),
        ("2026-05-01T03:12Z", "2026-05-01 03:12+00:00"),
        ("2026-05-01T03:12:00 -0430", "2026-05-01 03:12-04:30"),
        ("2026-05-01T03:12+02:00", "2026-05-01 03:12"),
        ("2030-01-01", "2030-01-01 00:00"),
        ("90s", "2026-05-02 08:58:30"),
        ("10m", "2026-05-02 08:50"),
        ("2h", "2026-05-02 07:00"),
        ("1h30m", "2026-05-02 07:30"),
        ("1.5h", "2026-05-02 07:30"),
        ("1d", "2026-05-01 09:00"),
        ("0s", "2026-05-02 09:00"),
    ],
)
def test_what_it_means(given: str, is_when: str) -> None:
    assert since(given, NOW, BERLIN) == until(given, NOW, BERLIN) == at(is_when)


@pytest.mark.parametrize(
    "given",
    [
        *("", " ", "3", "312", "3:1", "3:123", "24:00", "3:60", "3:12:60", "3:12pm", "-3:12"),
        *("yesterday", "now", "10", "10 m", "m", "10y", "-10m", "1e3s", "10m ago", "inf", "nan"),
        *(
            "2026-5-1",
            "2026-02-30",
            "2026-05-01T",
            "2026-05-01T3",
            "2026-05-01T25:00",
            "0000-01-01",
        ),
        *("2026-05-01T03:12+99:00", "20260501", "٣:١٢", "1" * 5000, "9" * 20 + "d", "3:12\n4:12"),
    ],
    ids=repr,
)
def test_what_is_no_time(given: str) -> None:
    for parse in (since, until):
        with pytest.raises(ValueError, match="is no time: give a time of day like 3:12") as raised:
            parse(given, NOW, BERLIN)
        assert REMEDY in str(raised.value)
        assert len(str(raised.value)) < 200
        assert repr(given)[:20] in str(raised.value)


@pytest.mark.parametrize(
    ("now", "given", "first", "second"),
    [
        # Put back: shown twice.
        ("2026-10-25 09:00", "2:30", "2026-10-25 02:30+02:00", "2026-10-25 02:30+01:00"),
        ("2026-10-26 01:00", "2:30", "2026-10-25 02:30+02:00", "2026-10-25 02:30+01:00"),
        ("2026-10-25 02:40+02:00", "2:30", *["2026-10-25 02:30+02:00"] * 2),
        ("2026-10-25 02:10+01:00", "2:30", *["2026-10-25 02:30+02:00"] * 2),
        ("2026-10-25 02:10+02:00", "2:30", *["2026-10-24 02:30+02:00"] * 2),
        (
            "2026-11-25 09:00",
            "2026-10-25T02:30",
            "2026-10-25 02:30+02:00",
            "2026-10-25 02:30+01:00",
        ),
        ("2026-10-25 09:00", "1:59", *["2026-10-25 01:59+02:00"] * 2),
        ("2026-10-25 09:00", "3:00", *["2026-10-25 03:00+01:00"] * 2),
        # Put forward: never shown.
        ("2026-03-29 09:00", "2:30", "2026-03-29 01:30+01:00", "2026-03-29 03:30+02:00"),
        ("2026-03-29 09:00", "1:59", *["2026-03-29 01:59+01:00"] * 2),
        ("2026-03-29 09:00", "3:00", *["2026-03-29 03:00+02:00"] * 2),
        ("2026-03-29 01:59", "2:30", *["2026-03-28 02:30+01:00"] * 2),
        ("2026-03-29 03:01", "2:30", "2026-03-29 01:30+01:00", "2026-03-29 03:30+02:00"),
        ("2026-03-30 02:29", "2:30", "2026-03-29 01:30+01:00", "2026-03-29 03:30+02:00"),
        # A day of 23 hours, and one of 25, are a day on the clock.
        ("2026-03-29 09:00", "10:00", *["2026-03-28 10:00"] * 2),
        ("2026-10-25 09:00", "10:00", *["2026-10-24 10:00"] * 2),
        # An age knows no clock.
        ("2026-03-29 09:00", "1d", *["2026-03-28 08:00"] * 2),
    ],
)
def test_where_clocks_are_put_back_or_forward(
    now: str, given: str, first: str, second: str
) -> None:
    found = since(given, at(now), BERLIN), until(given, at(now), BERLIN)
    assert found == (at(first), at(second))


@given(
    st.sampled_from(ZONES),
    st.floats(at("2005-01-01"), at("2030-01-01")),
    st.integers(0, 23),
    st.integers(0, 59),
)
def test_of_day_is_within_a_day_and_not_in_the_future(
    zone: tzinfo, now: float, hour: int, minute: int
) -> None:
    given = f"{hour}:{minute:02}"
    begin, end = since(given, now, zone), until(given, now, zone)
    shown = {clock(each, zone) for each in (begin, end)}
    was_skipped = begin != end and f"{hour:02}:{minute:02}:00.000" not in shown
    assert was_skipped or shown == {f"{hour:02}:{minute:02}:00.000"}
    assert was_skipped or end <= now
    assert begin <= end
    assert now - begin <= 49 * 3600, "Samoa has gone without a day"


@pytest.mark.parametrize(
    ("now", "begin", "given", "is_when"),
    [
        ("2026-05-02 09:00", "3:10", "3:20", "2026-05-02 03:20"),
        ("2026-05-02 09:00", "23:50", "0:10", "2026-05-02 00:10"),
        # It would be that of the day before.
        ("2026-05-02 03:15", "3:10", "3:20", "2026-05-02 03:20"),
        ("2026-05-02 00:05", "23:50", "0:10", "2026-05-02 00:10"),
        ("2026-05-02 09:00", "2026-05-02T08:00", "7:00", "2026-05-03 07:00"),
        ("2026-05-02 09:00", "3:10", "3:10", "2026-05-02 03:10"),
        ("2026-10-25 02:05+01:00", "2026-10-25T02:00", "2:30", "2026-10-25 02:30+02:00"),
    ],
)
def test_until_is_after_since(now: str, begin: str, given: str, is_when: str) -> None:
    after = since(begin, at(now), BERLIN)
    assert until(given, at(now), BERLIN, after=after) == at(is_when)


@pytest.mark.parametrize("given", ["2026-05-01T03:12", "2h"])
def test_until_that_is_before_since_is_left(given: str) -> None:
    """Only a time of day can mean another day."""
    assert until(given, NOW, BERLIN, after=NOW) == until(given, NOW, BERLIN)


# -- shown -----------------------------------------------------------------------------------------


def test_shown() -> None:
    when = at("2026-05-01 03:12:05.999999")
    assert clock(when, BERLIN) == "03:12:05.999"
    assert day(when, BERLIN) == "2026-05-01"
    assert brief(when, NOW, BERLIN) == "2026-05-01 03:12:05"
    assert brief(when, when + 60, BERLIN) == "03:12:05"
    assert clock(-0.001, timezone.utc) == "23:59:59.999"


@pytest.mark.parametrize("when", [float("nan"), float("inf"), 1e300, -1e300, 1e15])
def test_shown_of_what_is_none(when: float) -> None:
    assert (clock(when), day(when), brief(when, NOW)) == (UNKNOWN, "", UNKNOWN)


def test_without_a_zone_it_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has summers, too."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        for now in (NOW, at("2026-03-29 09:00"), at("2026-10-25 09:00")):
            for given in ("3:12", "2:30", "10:00", "2026-03-29T02:30", "2026-10-25T02:30"):
                assert since(given, now) == since(given, now, BERLIN)
                assert until(given, now) == until(given, now, BERLIN)
            assert times.clock(now) == times.clock(now, BERLIN)
            assert times.day(now) == times.day(now, BERLIN)
    finally:
        monkeypatch.undo()
        time.tzset()
