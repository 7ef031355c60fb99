"""The beginning and the end of supervision in a process."""

from __future__ import annotations

from .. import config
from ..connection import losses
from . import answers, beat, capture, monitor, supervisor
from .places import PLACES, RELIED_ON
from .witness import Witness

__all__ = ["NAME", "PLACES", "RELIED_ON", "after_fork", "apply", "start", "stop"]

NAME = "supervision"


def start() -> None:
    """The places have been taken: tell, and ask."""
    beat.start()
    losses.tell(Witness())
    answers.offer()
    monitor.adopt()


def apply(before: config.Settings) -> None:
    """The settings in force have changed."""
    beat.apply()
    supervisor.apply()


def stop() -> None:
    """The places are xoscar's again."""
    losses.tell(None)
    supervisor.stop()
    beat.stop()


def after_fork() -> None:
    """In a forked child: sub-pools, page and logs are the parent's."""
    beat.after_fork()
    supervisor.after_fork()
    capture.after_fork()
