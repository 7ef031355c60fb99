"""The time in which connections are told to be idle."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

Clock = Callable[[], float]
"""Seconds, from whatever beginning; they never go back."""

# CLOCK_MONOTONIC stands still while a machine is suspended, but NAT boxes and peers go on
# counting: where there is a clock that does too, it is used.
monotonic: Clock = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
