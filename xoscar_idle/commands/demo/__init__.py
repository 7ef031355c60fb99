"""The demonstration: stock xoscar beside xoscar with idle closing, on real pools.

Each of the two sides has two server processes full of endpoints and one client process. The
clients make the same calls; they differ in one environment variable. The parent counts the
descriptors of all of them from outside.

The parent and its children speak JSON lines: orders on a child's stdin, reports on its stdout. A
child ends when its stdin does, so none outlives the parent, whatever ends that.
"""
