"""Caches of prepared data: moments of latents and caption features, computed once by `python -m zigma_pl prepare`."""
