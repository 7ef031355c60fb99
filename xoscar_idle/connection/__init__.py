"""The life of connections: opening, sharing, closing those that nobody uses."""
