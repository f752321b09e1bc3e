from zigma_pl.encoders.autoencoder import Autoencoder, IdentityAutoencoder, KLAutoencoder, build_autoencoder
from zigma_pl.encoders.text import HashingTextEncoder, TextEncoder, build_text_encoder

__all__ = [
    "Autoencoder",
    "HashingTextEncoder",
    "IdentityAutoencoder",
    "KLAutoencoder",
    "TextEncoder",
    "build_autoencoder",
    "build_text_encoder",
]
