"""The budget of restarts, in virtual time."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xoscar_idle.supervision.budget import (
    FIRST_DELAY,
    IN_A_ROW,
    JITTER,
    LONGEST_COOLDOWN,
    LONGEST_DELAY,
    STABLE,
    Budget,
    Limits,
    Plan,
    stable_after,
)

USUAL = Limits()


@dataclass
class Run:
    """A sub-pool whose every start takes ``start`` and whose every run lasts ``ran`` seconds."""

    limits: Limits = USUAL
    start: float = 0.0
    ran: float = 0.0
    chance: float = 0.5  # no jitter
    now: float = 1000.0
    budget: Budget = field(default_factory=Budget)

    def fails(self) -> Plan:
        """It starts, runs and fails; time goes on to the next try."""
        self.now += self.start + self.ran
        failed_at = self.now
        plan = self.budget.failed(
            self.now, self.limits, chance=self.chance, start=self.start, ran=self.ran
        )
        assert plan.at >= failed_at
        if plan.at < math.inf:
            self.now = plan.at
        return plan

    def delays(self, count: int) -> list[float]:
        found = []
        for _ in range(count):
            before = self.now + self.start + self.ran
            plan = self.fails()
            found.append(plan.at - before)
        return found


def test_the_first_restart_is_immediate_and_then_they_wait_twice_as_long() -> None:
    without_limit = Run(Limits.of("off", 60))
    assert without_limit.delays(10) == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert not without_limit.budget.is_open


def test_without_a_limit_a_run_is_stable_as_with_the_usual_one() -> None:
    run = Run(Limits.of("off", 60), start=0.5)
    assert run.delays(4) == [0, 1, 2, 4]
    run.ran = stable_after(0.5, USUAL.period)
    assert run.delays(1) == [0]
    assert len(run.budget._failures) == 1, "what is long past is not kept"


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999999])
def test_jitter(chance: float) -> None:
    delays = Run(Limits.of("off", 60), chance=chance).delays(9)
    factor = 1 + JITTER * (2 * chance - 1)
    assert delays == pytest.approx([factor * d for d in (0, 1, 2, 4, 8, 16, 32, 60, 60)])


def test_more_than_the_limit_within_its_time_is_degraded() -> None:
    run = Run()
    assert [run.fails().degraded for _ in range(3)] == ["", "", ""]
    plan = run.fails()
    assert plan.degraded == "it has failed 4 times within 60 s"
    assert run.budget.is_open


def test_each_try_out_of_degraded_that_fails_is_followed_by_a_longer_one() -> None:
    run = Run()
    assert run.delays(11)[3:] == [60, 120, 240, 480, 600, 600, 600, 600]
    assert run.fails().degraded == "it has failed again"


def test_a_cooldown_of_an_operator_that_is_longer_stays() -> None:
    assert Run(Limits.of("0/60", 3600)).delays(3) == [3600, 3600, 3600]


def test_without_a_cooldown_it_is_left_alone_until_somebody_asks() -> None:
    run = Run(Limits.of("0/60", 0))
    assert run.fails() == Plan(math.inf, "it has failed once within 60 s")
    assert run.fails() == Plan(math.inf, "it has failed again")


def test_a_slow_loader_is_degraded_too() -> None:
    """It loads for 90 s and dies 1 s later: never often within a minute."""
    run = Run(start=90, ran=1)
    plans = [run.fails() for _ in range(IN_A_ROW)]
    assert [bool(plan.degraded) for plan in plans] == [False] * (IN_A_ROW - 1) + [True]
    assert plans[-1].degraded == "it has failed 5 times without a stable run between"


def test_a_stable_run_is_forgotten_and_closes() -> None:
    run = Run()
    while not run.budget.is_open:
        run.fails()
    run.start, run.ran = 2.0, stable_after(2.0, 60)
    plan = run.fails()
    assert not run.budget.is_open
    assert plan == Plan(run.now), "immediately"
    run.start = run.ran = 0.0
    assert run.fails().at == run.now


@pytest.mark.parametrize(
    ("start", "period", "after"),
    [(0, 60, 60), (2, 60, 60), (20, 60, 200), (59, 60, 590), (61, 60, 600), (1, 3600, 600)],
)
def test_what_a_stable_run_is(start: float, period: float, after: float) -> None:
    assert stable_after(start, period) == after
    limits = Limits(3, period)
    for ran, delay in ((after, 0), (math.nextafter(after, 0), 2)):
        run = Run(limits, start=start)
        run.delays(2)
        run.ran = ran
        assert run.delays(1) == pytest.approx([delay])


def test_by_hand() -> None:
    run = Run()
    while not run.budget.is_open:
        run.fails()
    run.budget.forget()
    assert not run.budget.is_open
    assert run.delays(4) == [0, 1, 2, 60]


def test_what_does_not_count_does_not_spend() -> None:
    """Manual tries that fail: asked for the plan, it is the same again and again."""
    run = Run()
    run.fails()
    run.fails()
    assert {run.budget.plan(run.now, USUAL, chance=0.5) for _ in range(20)} == {Plan(run.now + 1)}
    while not run.budget.is_open:
        run.fails()
    why = "it has failed 4 times within 60 s"
    plans = {run.budget.plan(run.now, USUAL, chance=0.5) for _ in range(20)}
    assert plans == {Plan(run.now + 60, why)}
    assert run.delays(1) == [120]


def test_all_short_histories() -> None:
    """Every sequence of six failures with runs that are short, or stable: against a plain count."""
    for runs in itertools.product((0.0, 30.0, STABLE), repeat=6):
        budget, now, model = Budget(), 0.0, list[tuple[float, float]]()
        opened = False
        for ran in runs:
            now += ran
            plan = budget.failed(now, USUAL, chance=0.5, ran=ran)
            if ran == STABLE:
                opened = False
                model = [(at, r) for at, r in model if now - at < 60]
                in_a_row = 1
            else:
                in_a_row = in_a_row + 1 if model or now != ran else 1
            model.append((now, ran))
            recent = sum(now - at < 60 for at, _ in model)
            too_often = opened or recent > 3 or in_a_row >= IN_A_ROW
            assert bool(plan.degraded) is too_often, (runs, now)
            opened = too_often
            assert budget.is_open is opened


@given(
    limits=st.builds(
        Limits,
        st.none() | st.integers(0, 10),
        st.floats(0.001, 1e4),
        st.floats(0, 1e5),
    ),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["fail", "fail", "fail", "plan", "forget"]),
            st.floats(0, 2000),
            st.floats(0, 2000),
            st.floats(0, 1),
        ),
        max_size=40,
    ),
)
def test_whatever_happens(limits: Limits, steps: list[tuple[str, float, float, float]]) -> None:
    """No try is earlier than now, none is further off than its bound, and there is always one."""
    budget, now = Budget(), 0.0
    longest = max(LONGEST_COOLDOWN, limits.cooldown)
    for verb, start, ran, chance in steps:
        now += start + ran
        if verb == "forget":
            budget.forget()
            assert not budget.is_open
            continue
        plan = (
            budget.failed(now, limits, chance=chance, start=start, ran=ran)
            if verb == "fail"
            else budget.plan(now, limits, chance=chance)
        )
        assert bool(plan.degraded) is budget.is_open
        if plan.degraded:
            assert limits.times is not None
            assert plan.at == math.inf if not limits.cooldown else plan.at <= now + longest
        else:
            assert now <= plan.at <= now + LONGEST_DELAY * (1 + JITTER)
    budget.forget()
    assert budget.failed(now, Limits(1), chance=0.5).at == now
    assert FIRST_DELAY == 1
