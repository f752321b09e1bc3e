"""Networks: backbones and their parts, which are layers, token mixers and conditioners."""
