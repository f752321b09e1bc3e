"""Scores of generated pictures and clips: features of frozen networks, and distances between sets of them."""
