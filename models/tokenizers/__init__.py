"""Tokenizers: from pixels, class maps, spectrograms and clouds to the tokens that are asked for."""
