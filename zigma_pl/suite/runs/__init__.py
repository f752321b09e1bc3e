"""All rows of the tables: trained, scored, continued after an interruption, here or on a SLURM cluster."""
