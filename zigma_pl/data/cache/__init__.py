"""Prepared data sets: latents' moments and caption features, computed once by `python -m zigma_pl prepare`."""
