"""Holds Grafana's dashboards as Python data. `python -m monitoring.dashboards FOLDER` writes them as JSON."""
