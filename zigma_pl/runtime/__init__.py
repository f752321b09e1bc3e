"""Execution of networks: CUDA graphs, compilation, and sharding over processes."""
