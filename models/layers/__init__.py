"""Layers: what the systems are built of."""
