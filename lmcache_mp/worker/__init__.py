"""The process of one L2 adapter: threads, retries, deadlines, the circuit breaker, checksums.

Reading order: `health` (may the adapter be used?), `objects` (one chunk, one object), `lane` (a
thread that takes work), `__main__` (the process's life).
"""
