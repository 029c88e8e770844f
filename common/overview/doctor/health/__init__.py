"""What may be wrong with what beit made: stores, runs, encoders, tokenizers. The machine is looked at in `machine/`."""
