"""File formats, read as far as the reader needs them: enough to find a bad file before a decoder meets it."""
