"""``python -m xoscar_idle`` is the command ``xoscar-idle``."""

from .commands.cli import main

main(prog_name="xoscar-idle")
