"""Lightning callbacks: weight averaging, checkpoints, previews, scoring, throughput and progress."""
