"""One table over fine-tuned runs: metric, seeds, interval, budget."""
