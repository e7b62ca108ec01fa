"""Renders the report of a run: one HTML file with its curves, charts and pictures."""
