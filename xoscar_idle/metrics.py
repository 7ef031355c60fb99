"""The public place of :class:`PrometheusCollector`, for programs that register it themselves."""

from __future__ import annotations

from .telemetry.metrics import PrometheusCollector

__all__ = ["PrometheusCollector"]
