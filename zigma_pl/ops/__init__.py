"""The fused operations of Mamba blocks, each with a reference implementation and a choice of backends."""
