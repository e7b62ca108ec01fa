"""Renders what a cluster with the Prometheus operator and Grafana's sidecar needs to watch all runs.

Sources: monitoring.coreos.com/v1 of prometheus-operator; label `grafana_dashboard` of the kube-prometheus-stack chart.
"""

from typing import Any

from monitoring.dashboards.__main__ import DASHBOARDS
from monitoring.dashboards.__main__ import rendered as dashboard_text
from monitoring.rules.__main__ import groups

Document = dict[str, Any]

_API = "monitoring.coreos.com/v1"
_LOCAL_RANKS = 16  # of the largest hosts; a pod with fewer ranks has fewer of these ports
_INTERVAL = "15s"
_META = "__meta_kubernetes_pod_"
_HCCS = "npu_chip_info_hccs_statistic_info_(?:tx_cnt|rx_cnt|crc_err_cnt)"
_EVERY_NAMESPACE = {"any": True}


def _metadata(name: str, labels: dict[str, str] | None = None) -> Document:
    return {"name": name, "labels": {"app.kubernetes.io/name": "vpred-monitoring", **(labels or {})}}


def _from_pod(field: str, label: str) -> Document:
    return {"sourceLabels": [_META + field], "targetLabel": label}


def pod_monitor() -> Document:
    """Render the PodMonitor of all ranks.

    The samples of a rank carry its labels. Their hostname is the pod's, so the node's name of the target replaces it.
    """
    relabelings = [
        {"targetLabel": "job", "replacement": "vpred"},
        _from_pod("label_app_kubernetes_io_instance", "run"),
        _from_pod("node_name", "hostname"),
    ]
    of_samples = [
        {"sourceLabels": ["exported_run"], "regex": "(.+)", "targetLabel": "run"},
        {"action": "labeldrop", "regex": "exported_(run|hostname)"},
    ]
    rank = {"interval": _INTERVAL, "relabelings": relabelings, "metricRelabelings": of_samples}
    ports = (f"metrics-{number}" for number in range(_LOCAL_RANKS))
    return {
        "apiVersion": _API,
        "kind": "PodMonitor",
        "metadata": _metadata("vpred-ranks"),
        "spec": {
            "namespaceSelector": _EVERY_NAMESPACE,
            "selector": {"matchLabels": {"app.kubernetes.io/name": "vpred", "app.kubernetes.io/component": "host"}},
            "podMetricsEndpoints": [{"port": port, **rank} for port in ports],
        },
    }


def npu_exporter() -> Document:
    """Render the PodMonitor of MindCluster's npu-exporter, with the label by which devices are joined with ranks."""
    links = [
        {"sourceLabels": ["__name__"], "regex": rf"{_HCCS}_(\d)", "targetLabel": "link"},
        {"sourceLabels": ["__name__"], "regex": rf"({_HCCS})_\d", "targetLabel": "__name__"},
    ]
    endpoint = {
        "portNumber": 8082,
        "interval": "30s",
        "honorTimestamps": False,
        "relabelings": [{"targetLabel": "job", "replacement": "npu-exporter"}, _from_pod("node_name", "hostname")],
        "metricRelabelings": links,
    }
    return {
        "apiVersion": _API,
        "kind": "PodMonitor",
        "metadata": _metadata("vpred-npu-exporter"),
        "spec": {
            "namespaceSelector": _EVERY_NAMESPACE,
            "selector": {"matchLabels": {"app": "npu-exporter"}},
            "podMetricsEndpoints": [endpoint],
        },
    }


def service_monitor() -> Document:
    """Render the ServiceMonitor of `vpred-launch serve`, behind a Service with these labels and a port `metrics`."""
    return {
        "apiVersion": _API,
        "kind": "ServiceMonitor",
        "metadata": _metadata("vpred-serve"),
        "spec": {
            "namespaceSelector": _EVERY_NAMESPACE,
            "selector": {"matchLabels": {"app.kubernetes.io/name": "vpred", "app.kubernetes.io/component": "serve"}},
            "endpoints": [
                {
                    "port": "metrics",
                    "interval": _INTERVAL,
                    "honorLabels": True,
                    "relabelings": [{"targetLabel": "job", "replacement": "vpred-launcher"}],
                }
            ],
        },
    }


def prometheus_rule() -> Document:
    """Render the PrometheusRule: the groups of monitoring/stack/rules/vpred.yml."""
    return {"apiVersion": _API, "kind": "PrometheusRule", "metadata": _metadata("vpred"), "spec": groups()}


def dashboards() -> list[Document]:
    """Render a ConfigMap for each dashboard, which Grafana's sidecar finds by its label."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _metadata(each.uid, {"grafana_dashboard": "1"}),
            "data": {f"{each.uid}.json": dashboard_text(each)},
        }
        for each in DASHBOARDS
    ]


def files() -> dict[str, list[Document]]:
    """Return the documents of each file."""
    return {
        "podmonitor.yaml": [pod_monitor(), npu_exporter()],
        "servicemonitor.yaml": [service_monitor()],
        "prometheusrule.yaml": [prometheus_rule()],
        "dashboards.yaml": dashboards(),
    }
