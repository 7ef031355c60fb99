"""Tests of xoscar_idle.connection."""
