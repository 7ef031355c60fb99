"""What can be seen of processes: of this one, and of others."""
