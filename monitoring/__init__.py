"""Provides Prometheus metrics, log lines, step history and the report of a run. It does not use MindSpore."""

from monitoring.errors import MonitorError
from monitoring.exporter import Exporter, start_exporter
from monitoring.history import History
from monitoring.logs import configure_logging
from monitoring.metric_rows import METRICS, Metric, RankLabels
from monitoring.metrics import WorkerMetrics
from monitoring.report import render_report

__all__ = [
    "METRICS",
    "Exporter",
    "History",
    "Metric",
    "MonitorError",
    "RankLabels",
    "WorkerMetrics",
    "configure_logging",
    "render_report",
    "start_exporter",
]
