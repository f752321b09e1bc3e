"""Benchmarks of speed and memory: contestants are checked against float64, then timed in interleaved rounds."""
