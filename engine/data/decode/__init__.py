"""Decoding: from verified bytes to tensors on the device, one file for each kind of data."""
