"""Holds recording rules and alerts as Python data. `python -m monitoring.rules FILE` writes them for Prometheus."""
