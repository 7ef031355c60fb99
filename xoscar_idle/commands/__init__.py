"""The command ``xoscar-idle``."""
