"""The engine process: one thread, one loop; it owns L1's records and never touches KV bytes.

Reading order: `clients` (who is there and alive), `service` (a handler per message), `__main__`
(the process's life).
"""
