"""The benchmark of recovery, in short: its accounts, and that each part measures what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import recovery
from benchmarks.accounts import Account, account
from benchmarks.harness import Result

from ..support.processes import ROOT


@pytest.mark.parametrize(
    ("said", "executed", "expected"),
    [
        ("1 0.5", "+1 -1", {"answered": 1, "longest": 0.5}),
        ("1 0.5", "+1 +1 -1", {"answered": 1, "twice": 1, "cut": 1, "longest": 0.5}),
        ("1 0.5", "+1", {"answered": 1, "untold": 1, "cut": 1, "longest": 0.5}),
        ("1 0.5", "", {"answered": 1, "invented": 1, "longest": 0.5}),
        ("1 9 PoolCrashed", "+1", {"in_flight": 1, "cut": 1}),
        ("1 9 ServerClosed", "", {"in_flight": 1, "lost": 1}),
        ("1 9 PoolUnavailable", "", {"unsent": 1, "lost": 1}),
    ],
)
def test_an_account(said: str, executed: str, expected: dict[str, int]) -> None:
    made = account([said], executed.split())
    errors = {said.split()[2]: 1} if len(said.split()) > 2 else {}
    assert made == Account(calls=1, errors=errors, **expected)


def test_an_account_of_many() -> None:
    made = account(["1 1", "2 1 PoolCrashed", "3 2"], ["+1", "-1", "+2", "+3", "-3"])
    assert (made.calls, made.answered, made.failed, made.cut) == (3, 2, 1, 1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(ROOT)

    def run(part: Callable[..., None], *arguments: object) -> Result:
        result = Result("recovery", "", "")
        part(result, *arguments)
        for reach in result.reaches:
            assert reach.met, (reach, result.data)
        return result

    return run


@pytest.mark.integration
def test_flapping(measured: Callable[..., Result]) -> None:
    result = measured(recovery._flapping, 0.1, 0.5, "1/60", [recovery.ACTING])
    ((_, _, _, _, starts, _),) = result.tables[0].rows
    assert starts == "1", "one per try"
    said = "its failures are forgotten; it has been recovered"
    assert result.data[f"flapping, {recovery.ACTING}"]["reset"] == said


@pytest.mark.integration
def test_loading(measured: Callable[..., Result]) -> None:
    (table,) = measured(recovery._loading, 0.2, 0.1, "1/60").tables
    (_, _, starts, then), (_, _, _, stock) = table.rows
    assert starts == 1
    assert "it has failed 2 times within 60 s" in then
    assert stock == "goes on"


@pytest.mark.integration
def test_rolling(measured: Callable[..., Result]) -> None:
    (accounts,) = measured(
        recovery._rolling, 1, 4, [recovery.STOPPED, recovery.UNSENT]
    ).data.values()
    assert accounts[recovery.UNSENT]["answered"] == accounts[recovery.UNSENT]["calls"] > 0


@pytest.mark.integration
def test_chaos(measured: Callable[..., Result]) -> None:
    sides = [recovery.UNSENT, recovery.RETRIED]
    *kills, accounts = measured(recovery._chaos, 2, 4, 2, 0.5, sides).data.values()
    assert [len(each) for each in kills] == [2, 2]
    assert accounts[recovery.RETRIED]["answered"] == accounts[recovery.RETRIED]["calls"] > 0


@pytest.mark.integration
def test_recoveries(measured: Callable[..., Result]) -> None:
    result = measured(recovery._recoveries, 1, [recovery.ACTING])
    for phases in result.data["seconds of a recovery"].values():
        assert all(len(each) == 1 and each[0] > 0 for each in phases.values())
