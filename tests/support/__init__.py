"""What tests share: hosts, networks, clocks, environments."""
