"""BEiT: BERT pre-training of image transformers, from unlabelled images to a fine-tuned model."""

__version__ = "0.1.0"
