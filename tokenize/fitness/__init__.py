"""How fit an image tokenizer is for the images at hand: measurements, verdicts in words, and the pages that show them."""
