"""What fine-tuning changes in a batch on its device: drawn on the host as part of a plan, keyed by (seed, position)."""
