"""Bottom floor: a small set of operations, each with a definition, a cost and fast backends."""
