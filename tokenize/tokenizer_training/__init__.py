"""Training a tokenizer, converting one, and the report on one."""
