"""The fused operations of the mixer, each with its reference and a table of backends."""
