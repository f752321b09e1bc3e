"""Train and score all experiments, locally or on a SLURM cluster, and resume interrupted runs."""
