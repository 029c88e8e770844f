"""Downstream use of an encoder: classification, evaluation and prediction."""
