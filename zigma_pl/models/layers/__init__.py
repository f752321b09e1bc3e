"""Layers that backbones share. Tokens are channel-last, (B, L, D)."""
