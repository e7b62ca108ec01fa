"""Holds objects for the Prometheus operator, made of rules and dashboards: `python -m monitoring.kubernetes FOLDER`."""
