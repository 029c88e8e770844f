"""What the stages share: image replay, the token store, tokenizer models, the ViT and the training loop."""
