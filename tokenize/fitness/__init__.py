"""How fit an image tokenizer is for the images at hand: measurements, verdicts in words, and pages that show them."""
