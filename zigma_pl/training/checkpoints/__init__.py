"""Checkpoints of training runs: written atomically, verified when read, located by experiment, and resumed exactly."""
