"""Training: the LightningModule, optimisers, callbacks and checkpoints."""
