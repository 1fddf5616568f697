"""What the engine, the worker processes and the command line share about L2, and the engine's part.

Reading order: `spec` (what people write), `envelope` (what is around every object), ...
"""
