"""Verification: is this file whole, and can it be decoded here? One file for each kind of data."""
