"""One self-contained HTML file that says what a run did, how well, and how far to trust it."""
