"""Image classification: the model and its training step."""
