"""The demonstration: stock xoscar beside xoscar with this package, on real pools.

Its first part is idle closing. Each of the two sides has two server processes full of endpoints
and one client process. The clients make the same calls; they differ in one environment variable.
The parent counts the descriptors of all of them from outside.

Its second part is supervision. Each side has a main pool with two sub-pools, one of which the
parent kills, and a caller. The sides differ in environment variables alone here, too.

The parent and its children speak JSON lines: orders on a child's stdin, reports on its stdout. A
child ends when its stdin does, and its sub-pools with it, so none outlives the parent, whatever
ends that.
"""
