"""How a network is run: recorded in CUDA graphs, compiled, or sharded over processes."""
