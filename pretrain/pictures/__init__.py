"""Pictures of pre-training: masks, batches, reconstructions."""
