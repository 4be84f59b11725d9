"""Readers of checkpoints: one file per format and per model, all giving a `TensorSource`."""
