"""Results beside the published numbers: Markdown tables and a static HTML page."""
