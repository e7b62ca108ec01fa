"""Every metric that a dashboard or a rule names is in a table of ours, in a recording rule, or in an exporter."""

from launcher.records.launcher_metrics import LAUNCHER_METRICS
from monitoring.dashboards.__main__ import DASHBOARDS
from monitoring.metric_rows import IDENTITY, METRICS
from monitoring.rules.alerts import ALERTS
from monitoring.rules.recording import RECORDING
from support.dashboards import label_matchers, metrics_of, panels

SUFFIXES = {"summary": ("_sum", "_count"), "histogram": ("_bucket", "_sum", "_count")}
OURS = {
    *(row.name + suffix for row in METRICS for suffix in SUFFIXES.get(row.kind, ("",))),
    *(row.name for row in LAUNCHER_METRICS),
    *RECORDING,
}
PROMETHEUS = {"up", "ALERTS", "scrape_duration_seconds"}
# npu-exporter of MindCluster, read in its source. The link of an HCCS counter becomes a label at the scrape.
NPU_EXPORTER = {
    *(
        f"npu_chip_info_{name}"
        for name in (
            "aicore_current_freq",
            "bandwidth_tx",
            "hbm_ecc_double_bit_error_cnt",
            "hbm_ecc_single_bit_error_cnt",
            "hbm_temperature",
            "hbm_total_memory",
            "hbm_used_memory",
            "hccs_bandwidth_info_total_tx",
            "hccs_statistic_info_crc_err_cnt",
            "health_status",
            "link_status",
            "network_status",
            "power",
            "temperature",
            "utilization",
        )
    ),
    *(
        f"npu_chip_{name}"
        for name in ("link_up_num", "roce_new_pkt_rty_num", "roce_rx_err_pkt_num", "roce_tx_err_pkt_num")
    ),
}
NODE_EXPORTER = {
    "node_cpu_seconds_total",
    "node_disk_read_bytes_total",
    "node_disk_written_bytes_total",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemTotal_bytes",
    "node_network_receive_bytes_total",
    "node_network_transmit_bytes_total",
    "node_pressure_memory_waiting_seconds_total",
}


def expressions() -> list[str]:
    documents = [each.json() for each in DASHBOARDS]
    return [
        *(target["expr"] for each in documents for panel in panels(each) for target in panel["targets"]),
        *(each["target"]["expr"] for document in documents for each in document["annotations"]["list"]),
        *(each["query"]["query"] for document in documents for each in document["templating"]["list"][1:]),
        *RECORDING.values(),
        *(alert.expr for alert in ALERTS),
    ]


def test_every_name_is_exported() -> None:
    named = {name for expr in expressions() for name in metrics_of(expr)}
    assert named - OURS - PROMETHEUS - NPU_EXPORTER - NODE_EXPORTER == set()
    # A list of names that nobody asks for would hide a misspelt one.
    assert NPU_EXPORTER | NODE_EXPORTER | PROMETHEUS | set(RECORDING) <= named | {"run_part:vpred_wall:ratio5m"}


def test_every_label_of_ours_is_exported() -> None:
    """A matcher on a label that no row has would match nothing, or all."""
    labels = {
        row.name + suffix: {*IDENTITY, *row.labels, "le"} for row in METRICS for suffix in SUFFIXES.get(row.kind, ("",))
    }
    labels |= {row.name: {"run", *row.labels} for row in LAUNCHER_METRICS}
    found = [(name, label) for expr in expressions() for name, label in label_matchers(expr) if name in labels]
    assert len(found) > 50
    assert [(name, label) for name, label in found if label not in labels[name]] == []


def test_a_name_and_a_label_that_are_not_there_are_found() -> None:
    assert metrics_of('rate(vpred_step_secnds_sum{rank="0"}[5m])') - OURS == {"vpred_step_secnds_sum"}
    assert label_matchers('x + vpred_loss{rnk="0",run=~"a"}') == [("vpred_loss", "rnk"), ("vpred_loss", "run")]
