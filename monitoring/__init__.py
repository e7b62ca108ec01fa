"""Provides Prometheus metrics, log lines, step history and the report of a run. It does not use MindSpore."""

from monitoring.errors import MonitorError
from monitoring.exporter import Exporter, Tls
from monitoring.history import History
from monitoring.logs import configure_logging
from monitoring.metric_rows import METRICS, Metric, RankLabels
from monitoring.metrics import WorkerMetrics
from monitoring.records import STEP_PARTS, read_attempts, read_validations
from monitoring.report.page import render_report
from monitoring.users import Users, read_users

__all__ = [
    "METRICS",
    "STEP_PARTS",
    "Exporter",
    "History",
    "Metric",
    "MonitorError",
    "RankLabels",
    "Tls",
    "Users",
    "WorkerMetrics",
    "configure_logging",
    "read_attempts",
    "read_users",
    "read_validations",
    "render_report",
]
