"""Tests of xoscar_idle.telemetry."""
