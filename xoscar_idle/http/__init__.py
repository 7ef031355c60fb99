"""A main pool's process over HTTP: how its sub-pools are, and what can be done about them."""
