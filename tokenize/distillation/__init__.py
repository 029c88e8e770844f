"""Training a tokenizer whose words a teacher's features decide: vector-quantised knowledge distillation."""
