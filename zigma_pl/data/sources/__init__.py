"""Data modules, one file for each data set."""
