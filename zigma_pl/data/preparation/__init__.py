"""The `prepare` command: encoding a data set once into a cache, and checking the cache."""
