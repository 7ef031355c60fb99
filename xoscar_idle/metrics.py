"""The public place of what programs use of the metrics."""

from __future__ import annotations

from .telemetry.metrics import PrometheusCollector, register, unregister

__all__ = ["PrometheusCollector", "register", "unregister"]
