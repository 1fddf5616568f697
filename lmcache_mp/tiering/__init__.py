"""What the engine, the worker processes and the command line share about L2, and the engine's part.

Reading order: `spec` and `roster` (what people write), `envelope` (what is around every object),
`messages`, `status`, `outcomes`; then the engine's part: `jobs`, `backlog`, `known`, `station` (one
adapter), `search`, `promotion`, `tiers` (all of them).
"""
