"""Top floor: configuration, data, the training loop, checkpoints, evaluation and the command line."""
