"""What a model has learned, measured on the val split: engine.evaluate chooses by what."""
