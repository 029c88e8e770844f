"""Masked image modelling: block masks, the BEiT objective and its training run."""
