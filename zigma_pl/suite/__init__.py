"""The experiments of `experiments/`: running them, and the tables and the page of their results."""
