"""Decoders: from what the encoder saw to values for every token, masked ones included."""
