"""Tests of whole programs: real pools under load, faults and settings, beside stock xoscar."""
