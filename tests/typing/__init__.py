"""What the public API is to a type checker. Never run: read by mypy and by pyright, which must
agree. A line that both must refuse says so to each: an ignore that is not needed is an error.
"""
