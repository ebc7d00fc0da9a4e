"""Where the epochs of GRCN and DRAGON go, and how to make them fast without changing a number."""

__version__ = "0.1.0"
