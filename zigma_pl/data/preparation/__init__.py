"""What `prepare` does: a data set is encoded once into a cache, and the cache is checked."""
