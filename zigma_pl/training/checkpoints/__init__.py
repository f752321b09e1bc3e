"""Checkpoints of training runs: written whole, verified when read, found again, and resumed from exactly."""
