"""Networks: backbones and what they are made of, which are layers, mixers and conditioners."""
