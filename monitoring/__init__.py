"""Provides Prometheus metrics, log lines, step history and the report of a run. It does not use MindSpore."""

from monitoring.errors import MonitorError
from monitoring.exporter import Exporter, Tls
from monitoring.history import History
from monitoring.logs import configure_logging
from monitoring.metric_rows import METRICS, Metric, RankLabels
from monitoring.metrics import WorkerMetrics
from monitoring.report import render_report
from monitoring.users import Users, read_users

__all__ = [
    "METRICS",
    "Exporter",
    "History",
    "Metric",
    "MonitorError",
    "RankLabels",
    "Tls",
    "Users",
    "WorkerMetrics",
    "configure_logging",
    "read_users",
    "render_report",
]
