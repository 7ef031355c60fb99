"""Tests of xoscar_idle.connections."""
