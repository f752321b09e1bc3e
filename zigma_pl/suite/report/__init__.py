"""Result records beside the published numbers: Markdown tables and one static HTML page."""
