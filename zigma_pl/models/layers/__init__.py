"""Layers shared by the backbones. Tokens are channel-last, (B, L, D), throughout."""
