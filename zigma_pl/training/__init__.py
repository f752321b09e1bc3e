"""Training: the LightningModule, its optimisers, callbacks and checkpoints."""
