"""The command ``python -m benchmarks``: all scenarios, or one of them."""

from __future__ import annotations

import importlib

import click

from .harness import progress, write_report

SCENARIOS = (
    "descriptors",
    "calls",
    "watching",
    "check",
    "lateness",
    "dead_endpoint",
    "reconnect",
    "nat",
    "supervision",
    "recovery",
    "interface",
    "alternatives",
    "soak",
)


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Measure what xoscar-idle brings and costs; without a SCENARIO, run them all.

    Results and the report are written to benchmarks/results/.
    """
    if context.invoked_subcommand is None:
        for name in SCENARIOS:
            progress(f"{name}:")
            context.invoke(main.commands[name.replace("_", "-")])


@main.result_callback()
def report(_: object) -> None:
    write_report(SCENARIOS)
    progress("wrote the report")


for name in SCENARIOS:
    main.add_command(getattr(importlib.import_module(f".{name}", __package__), name))

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
