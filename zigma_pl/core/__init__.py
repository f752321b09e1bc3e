"""Shared by all other packages: errors, atomic file writes, per-sample random numbers, JSON records, class paths."""
