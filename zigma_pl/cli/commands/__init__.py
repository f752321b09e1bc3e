"""Commands of `python -m zigma_pl` other than those of the Lightning trainer, one module each."""
