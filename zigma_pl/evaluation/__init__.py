"""Evaluation: stored samples, reference features of real images, scores, and result records."""
