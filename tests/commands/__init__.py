"""Tests of xoscar_idle.commands."""
