"""Scores of generated pictures and clips: features of frozen networks, and `torchmetrics.Metric`s on them."""
