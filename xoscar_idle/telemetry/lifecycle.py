"""The beginning and the end of telling what goes on in a process."""

from __future__ import annotations

from .. import config
from . import metrics, questions, snapshot
from .places import PLACES, RELIED_ON

__all__ = ["NAME", "PLACES", "RELIED_ON", "after_fork", "apply", "start", "stop"]

NAME = "telemetry"


def start() -> None:
    """Add the metrics to the program's, and answer who asks over the side channel."""
    metrics.arm()
    questions.offer()
    snapshot.offer()


def apply(before: config.Settings) -> None:
    """Nothing here depends on settings: what is told is read when it is asked for."""


def stop() -> None:
    """Take the metrics out again."""
    metrics.disarm()


def after_fork() -> None:
    """Nothing here is the parent's alone."""
