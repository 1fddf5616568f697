"""The http process and its routes: every `*_api.py` module here is mounted by itself."""
