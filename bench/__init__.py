"""Measurements of the engine against peers and against what the machine can do; only the command line calls this."""
