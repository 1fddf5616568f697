"""Measurements of the server, run from the project's root: `python -m benchmarks.<question>`."""
