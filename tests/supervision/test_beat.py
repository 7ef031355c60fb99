"""How real sub-pools are that are ill in one way or the other, and what signals they may get."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle import side_channel, side_thread
from xoscar_idle.supervision import answers, health, supervisor
from xoscar_idle.supervision.page import Page
from xoscar_idle.supervision.state import PoolInfo

from ..support.hosting import pools
from ..support.patients import Patient, patient
from ..support.waiting import bounded, eventually, eventually_here, eventually_told

pytestmark = pytest.mark.integration


# -- ill in all ways at once, as seen from the main pool's process ---------------------------------

Told = dict[str, dict[str, Any]]
"""What is told of sub-pools, by address."""


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as directory:  # a path that is short enough
        monkeypatch.setenv(side_channel.MONITOR, directory)
        yield


@pytest.mark.parametrize("uses_uvloop", ["0", "1"])
def test_each_is_told_with_its_reason_and_recovers(
    uses_uvloop: str, tmp_path: Path, monitor: None
) -> None:
    begun = time.time()
    with pools(
        *(1, 5),
        XOSCAR_IDLE_TIMEOUT="600",
        XOSCAR_SUPERVISE="observe",
        XOSCAR_USE_UVLOOP=uses_uvloop,
    ) as hosted:
        asyncio.run(_ill_in_all_ways(hosted.pid, hosted.addresses, tmp_path, begun))


async def _ill_in_all_ways(pid: int, addresses: list[str], place: Path, begun: float) -> None:
    main_address, gil, blocked, stopped, held, well = addresses
    main = await patient(main_address)

    async def told() -> Told:
        return {each["address"]: each for each in await main.pools()}

    async def all_well() -> Told:
        found = await told()
        fine = all(each["observed"] and each["state"] == "healthy" for each in found.values())
        return found if fine else {}

    before = await eventually_told(all_well)
    assert list(before) == addresses[1:]
    os.mkfifo(place / "gil")
    patients = {address: await patient(address) for address in addresses[1:]}
    calls = [
        asyncio.ensure_future(patients[gil].hold_gil(f"{place}/gil")),
        asyncio.ensure_future(patients[blocked].block(f"{place}/end")),
        asyncio.ensure_future(patients[held].hold()),
    ]
    os.kill(before[stopped]["pid"], signal.SIGSTOP)
    try:

        async def ill() -> Told:
            found = await told()
            states = {address: each["state"] for address, each in found.items()}
            expected = {gil: "unhealthy", blocked: "busy", stopped: "unhealthy"}
            # The stacks of the one are on their way when its state is told.
            complete = "hold_gil" in found[gil]["doing"] and found[blocked]["doing"]
            return found if states == {**states, **expected} and complete else {}

        found = await eventually_told(ill)
        _check_ill(found, *addresses[1:])
        _check_order(before, found, {gil, blocked, stopped}, begun)

        # It is known all the same, and goes on, where the main pool's own loop is blocked.
        calls.append(asyncio.ensure_future(main.block(f"{place}/main")))
        await eventually_here((place / "main.begun").exists)
        over_side_channel = await asyncio.to_thread(_asked, pid)
        _check_ill(over_side_channel, *addresses[1:])
        os.kill(before[stopped]["pid"], signal.SIGCONT)
        await asyncio.to_thread(eventually, lambda: _asked(pid)[stopped]["state"] == "healthy")
        assert _asked(pid)[stopped]["sequence"] > found[stopped]["sequence"]
        (place / "main").touch()
        await bounded(calls.pop())

        # What has lasted for the time that is asked for is a hang.
        await main.configure(hang_timeout=1)

        async def hung() -> Told:
            found = await told()
            return found if {found[each]["state"] for each in (blocked, held)} == HUNG else {}

        found = await eventually_told(hung)
        assert found[blocked]["reason"].startswith("hung: its event loop has been blocked for ")
        assert found[held]["reason"].startswith("hung: a request has been in process for ")
        assert found[gil]["reason"].startswith("no sign of life for ")
        assert found[well]["state"] == "healthy"
    finally:
        os.kill(before[stopped]["pid"], signal.SIGCONT)
        (place / "end").touch()
        (place / "main").touch()
        (place / "gil").write_text("x")
        await patients[held].release()
    await bounded(asyncio.gather(*calls))

    found = await eventually_told(all_well)
    assert {each["reason"] + each["doing"] for each in found.values()} == {""}
    _check_order(before, found, {gil, blocked, stopped, held}, begun)


HUNG = {"unhealthy"}


def _asked(pid: int) -> Told:
    line = side_channel.ask(pid, answers.ALL)
    assert line is not None
    return {each["address"]: each for each in json.loads(line)["pools"]}


def _check_ill(told: Told, gil: str, blocked: str, stopped: str, held: str, well: str) -> None:
    assert told[gil]["reason"].startswith("no sign of life for ")
    assert "in hold_gil" in told[gil]["doing"], "the interpreter wrote it, without its lock"
    assert told[gil]["requests"][0]["method"] == "hold_gil"
    assert told[blocked]["reason"].startswith("its event loop has been blocked for ")
    assert "in block\n" in told[blocked]["doing"].split("File")[1], "the innermost call first"
    assert told[blocked]["loop_lag"] >= health.BUSY
    assert told[stopped]["reason"].startswith("stopped: by a signal")
    assert told[stopped]["doing"] == ""
    assert (told[held]["state"], told[held]["in_process"]) == ("healthy", 1)
    assert told[held]["requests"][0]["method"] == "hold"
    assert told[held]["oldest_request"] >= health.SILENT - health.BEAT
    assert (told[well]["state"], told[well]["in_process"]) == ("healthy", 0)
    for each in (told[held], told[well]):
        assert (each["reason"], each["doing"]) == ("", "")
        assert each["rss"] > 1 << 20


def _check_order(before: Told, after: Told, changed: set[str], begun: float) -> None:
    """Each change has a number and a time of its own; where there was none, both are as before."""
    for address, each in after.items():
        was = before[address]
        if address in changed:
            assert each["sequence"] > max(other["sequence"] for other in before.values())
            assert begun <= was["since"] < each["since"] <= time.time()
        else:
            assert (each["sequence"], each["since"]) == (was["sequence"], was["since"])
        assert (each["pid"], each["incarnation"]) == (was["pid"], 1)
    sequences = [each["sequence"] for each in after.values()]
    assert len(set(sequences)) == len(sequences)


# -- a main pool in this process -------------------------------------------------------------------

OFF = {"XOSCAR_IDLE_TIMEOUT": "", "XOSCAR_SUPERVISE": "off"}

Test = Callable[[Any, list[Any]], Coroutine[Any, Any, None]]
"""What is done with a main pool, and with a patient in each of its sub-pools."""


@pytest.fixture
def observe(active: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a test with sub-pools that are observed; each has an environment."""
    monkeypatch.setenv("XOSCAR_SUPERVISE_DIR", f"{tmp_path}/records")
    monkeypatch.setattr(health, "SILENT", 1.5)  # for who judges, and not in the sub-pools

    def run(test: Test, *envs: dict[str, str], **settings: Any) -> None:
        async def main() -> None:
            pool = await xo.create_actor_pool(
                "127.0.0.1", n_process=len(envs), envs=list(envs), auto_recover=False
            )
            try:
                addresses = list(pool.sub_processes)
                await bounded(test(pool, [await patient(each) for each in addresses]))
            finally:
                await pool.stop()
                await eventually_here(lambda: side_thread._running is None)

        xoscar_idle.install(idle_timeout=600, **{"supervise": "observe", **settings})
        asyncio.run(main())

    return run


def info(ref: Any) -> PoolInfo:
    """What is told of the sub-pool of an actor."""
    (found,) = (each for each in xoscar_idle.pools() if each.address == ref.address)
    return found


def page_of(ref: Any) -> Page:
    found = supervisor.of(ref.address)
    assert found is not None
    lineage = found._lineages[ref.address].subpool
    assert lineage is not None
    assert lineage.page is not None
    return lineage.page


async def until(ref: Any, state: str, reason: str = "") -> PoolInfo:
    """As soon as it is in that state."""

    def reached() -> PoolInfo | None:
        found = info(ref)
        return found if found.state == state and found.reason.startswith(reason) else None

    found = await eventually_here(reached)
    assert found is not None
    return found


async def observed(ref: Any, whether: bool = True) -> None:
    await eventually_here(lambda: info(ref).observed is whether)


def test_one_that_is_not_to_be_observed_is_healthy_as_far_as_is_known(observe: Any) -> None:
    async def test(pool: Any, refs: list[Any]) -> None:
        plain, other = refs
        assert not await plain.active()
        await observed(other)
        os.kill(info(plain).pid, signal.SIGSTOP)
        os.kill(info(other).pid, signal.SIGSTOP)
        await until(other, "unhealthy", "stopped")
        found = info(plain)
        assert (found.state, found.observed, found.reason) == ("healthy", False, "")
        assert (found.in_process, found.loop_lag, found.rss) == (None, None, None)
        for ref in refs:
            os.kill(info(ref).pid, signal.SIGCONT)
        await until(other, "healthy")

    observe(test, OFF, {})


def test_it_is_switched_on_and_off_while_it_runs(observe: Any) -> None:
    async def test(pool: Any, refs: list[Any]) -> None:
        (ref,) = refs
        assert side_thread._running is None
        assert (info(ref).state, info(ref).observed) == ("healthy", False)
        xoscar_idle.configure(supervise="observe")
        await ref.configure(supervise="observe")
        await observed(ref)
        assert side_thread._running is not None
        await ref.configure(supervise="off")
        await observed(ref, False)
        await ref.configure(supervise="observe")
        await observed(ref)
        xoscar_idle.configure(supervise="off")
        assert side_thread._running is None
        assert info(ref).state == "healthy"

    observe(test, {}, supervise="off")


def test_an_illness_is_not_told_any_more_where_nobody_looks(observe: Any, tmp_path: Path) -> None:
    async def test(pool: Any, refs: list[Any]) -> None:
        (ref,) = refs
        await observed(ref)
        os.kill(info(ref).pid, signal.SIGSTOP)
        await until(ref, "unhealthy", "stopped")
        xoscar_idle.configure(supervise="off")
        assert (info(ref).state, info(ref).reason) == ("healthy", "")
        xoscar_idle.configure(supervise="observe")
        await until(ref, "unhealthy", "stopped")
        os.kill(info(ref).pid, signal.SIGCONT)
        await until(ref, "healthy")

    observe(test, {})


# -- errors that say that it is broken -------------------------------------------------------------

CUDA = RuntimeError("CUDA error: an illegal access, device 3")


@pytest.mark.parametrize("through", ["call", "tell", "create_actor"])
def test_an_error_that_matches_is_raised_and_told(observe: Any, through: str) -> None:
    async def test(pool: Any, refs: list[Any]) -> None:
        ref, well = refs
        with pytest.raises(ValueError, match="no such model"):
            await ref.fail(ValueError("no such model"))
        if through == "tell":
            await ref.fail.tell(CUDA)
        else:
            call = ref.fail(CUDA) if through == "call" else created(CUDA, ref.address)
            with pytest.raises(RuntimeError, match="CUDA error: an illegal access, device 3"):
                await call
        found = await until(ref, "unhealthy")
        assert found.reason == "it raised CUDA error: an illegal access, device 3"
        with pytest.raises(KeyError):
            await ref.fail(KeyError("another one"))
        assert await ref.echo(1) == 1, "it is told, and nothing is done about it"
        assert info(ref).reason == found.reason, "the first one is told"
        assert info(well).state == "healthy"

    observe(test, {}, {}, fault_errors="*EngineDeadError*,CUDA error: *")


async def created(error: BaseException, address: str) -> None:
    await xo.create_actor(Patient, error, address=address)


def test_an_error_is_of_the_pool_in_which_it_was_raised(observe: Any) -> None:
    """Who has asked that pool for something raises it once more, and is well."""

    async def test(pool: Any, refs: list[Any]) -> None:
        front, ill = refs
        with pytest.raises(RuntimeError, match="CUDA"):
            await front.ask(ill.address, CUDA)
        assert (await until(ill, "unhealthy")).reason.startswith("it raised CUDA error")
        os.kill(info(ill).pid, signal.SIGKILL)
        await until(ill, "dead")
        with pytest.raises(ConnectionRefusedError, match="CUDA error"):
            await front.ask(ill.address, CUDA)
        await _looked_at(front)
        assert info(front).state == "healthy"

    observe(test, {}, {}, fault_errors=["RuntimeError", "*CUDA*", "PoolUnavailable"])


async def _looked_at(ref: Any) -> None:
    """Until it has been looked at for certain after what is told of it now."""
    beaten = page_of(ref).told().thread_beat
    found = supervisor.of(ref.address)
    assert found is not None
    await eventually_here(lambda: page_of(ref).told().thread_beat > beaten)
    looked = found._looked
    await eventually_here(lambda: found._looked > looked)


# -- signals ---------------------------------------------------------------------------------------


def hold_gil(ref: Any, place: Path) -> asyncio.Future[Any]:
    os.mkfifo(place)
    call: asyncio.Future[Any] = asyncio.ensure_future(ref.hold_gil(f"{place}"))
    return call


def test_a_program_keeps_the_signals_that_it_takes(observe: Any, tmp_path: Path) -> None:
    """Where it takes ours another one is used, and where it has all, none; nobody is killed."""

    async def test(pool: Any, refs: list[Any]) -> None:
        some, every = refs
        await observed(some)
        await observed(every)
        ours = page_of(some).told().stack_signal
        assert signal.SIGRTMIN < ours < signal.SIGRTMAX
        await some.take_signals(ours)
        await every.take_signals()
        await eventually_here(lambda: page_of(some).told().stack_signal not in (0, ours))
        await eventually_here(lambda: page_of(every).told().stack_signal == 0)
        calls = [hold_gil(ref, tmp_path / f"{i}") for i, ref in enumerate(refs)]
        await until(every, "unhealthy", "no sign of life")
        await eventually_here(lambda: "in hold_gil" in info(some).doing)
        for i in range(2):
            (tmp_path / f"{i}").write_text("x")
        await asyncio.gather(*calls)
        for ref in refs:
            assert await ref.signals_taken() == []
            await until(ref, "healthy")

    observe(test, {}, {})


def test_a_program_that_has_its_faults_written_elsewhere(observe: Any, tmp_path: Path) -> None:
    async def test(pool: Any, refs: list[Any]) -> None:
        (ref,) = refs
        await observed(ref)
        assert await ref.handles_faults()
        call = hold_gil(ref, tmp_path / "gil")
        await eventually_here(lambda: "in hold_gil" in info(ref).doing)
        (tmp_path / "gil").write_text("x")
        await call
        os.kill(info(ref).pid, signal.SIGABRT)
        found = await until(ref, "dead")
        assert "SIGABRT" in (found.last_failure or "")

    observe(test, {"PYTHONFAULTHANDLER": "1"})


def test_another_program_under_its_number_gets_no_signal(observe: Any) -> None:
    async def test(pool: Any, refs: list[Any]) -> None:
        (ref,) = refs
        await observed(ref)
        assert page_of(ref).told().stack_signal
        pid = info(ref).pid
        with pytest.raises(xo.ServerClosed):
            await ref.replace()
        await until(ref, "unhealthy", "no sign of life")
        await eventually_here(lambda: info(ref).reason.startswith("no sign of life for 2 s"))
        assert psutil.Process(pid).name() == "sleep"
        os.kill(pid, signal.SIGKILL)
        await until(ref, "dead")

    observe(test, {})


def test_stacks_of_a_forked_child_are_not_told_as_its_own(observe: Any) -> None:
    async def test(pool: Any, refs: list[Any]) -> None:
        (ref,) = refs
        await observed(ref)
        status = await ref.fork(page_of(ref).told().stack_signal)
        assert os.WTERMSIG(status) == signal.SIGSEGV
        assert page_of(ref).stacks() == ""
        assert info(ref).in_process == 0
        assert info(ref).state == "healthy"

    observe(test, {})
