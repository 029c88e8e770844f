"""What a fine-tuned model can do: scores, mistakes, reports."""
