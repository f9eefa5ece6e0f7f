"""Masking: which tokens of a batch are visible, drawn on the host as functions of (seed, position)."""
