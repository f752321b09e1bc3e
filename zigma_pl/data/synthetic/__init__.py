"""Small synthetic data sets in the published layouts, for trying the pipeline without the data, and for tests."""
