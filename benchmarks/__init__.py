"""What xoscar-idle brings and what it costs: ``python -m benchmarks``."""
