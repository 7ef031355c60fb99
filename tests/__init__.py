"""Tests of xoscar_idle."""

from .support.environment import isolate

isolate()  # before xoscar is imported, which reads where its files go
