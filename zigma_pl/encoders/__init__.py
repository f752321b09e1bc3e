"""Frozen encoders: autoencoders for latents, text encoders for captions."""

from zigma_pl.encoders.autoencoder import Autoencoder, IdentityAutoencoder, KLAutoencoder, build_autoencoder
from zigma_pl.encoders.text import HashingTextEncoder, build_text_encoder
from zigma_pl.encoders.text_base import TextEncoder

__all__ = [
    "Autoencoder",
    "HashingTextEncoder",
    "IdentityAutoencoder",
    "KLAutoencoder",
    "TextEncoder",
    "build_autoencoder",
    "build_text_encoder",
]
