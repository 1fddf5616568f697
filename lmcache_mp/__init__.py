"""lmcache-mp: the KV-cache server that inference engines and their operators trust."""

__version__ = "0.1.0"
