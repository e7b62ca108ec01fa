"""The dashboard NPUs: MindCluster's npu-exporter, joined with the ranks of a run.

Every metric of npu-exporter is a gauge, counts of errors too, and -1 stands for a reading that failed. `id` is the
physical number of a device, as our `device_id`. Names: npu-exporter of MindCluster.
"""

from monitoring.dashboards.builder import Dashboard, Panel, Query, lines, stat, worst
from monitoring.dashboards.grafana import variable

_H = 'hostname=~"$hostname"'
_RANK = "rank {{rank}}, {{hostname}}/{{device_id}}"
_NONE = "no device has an error"


def _by_rank(metric: str) -> str:
    """Return a query for a metric of the run's devices, with the label `rank`."""
    device = f'label_replace({metric}{{{_H}}} >= 0, "device_id", "$1", "id", "(.*)")'
    ranks = f'vpred_last_step_timestamp_seconds{{run="$run",{_H}}}'
    return (
        f"{device} * on (hostname, device_id) group_left (rank) max by (hostname, device_id, rank) ({ranks} > bool 0)"
    )


def _errors(metric: str, window: str = "15m") -> str:
    """Return a query for the new errors by device. Failed readings are left out, which look like resets."""
    return f"sum by (hostname, id) (increase(({metric}{{{_H}}} >= 0)[{window}:1m]))"


def _used() -> str:
    used, total = (f"npu_chip_info_hbm_{which}_memory{{{_H}}}" for which in ("used", "total"))
    return f"({used} >= 0) / ({total} > 0)"


def _error_lines(title: str, description: str, *metrics: tuple[str, str]) -> Panel:
    queries = (
        Query(f"{worst(_errors(metric))} > 0", f"{name} {{{{hostname}}}}/{{{{id}}}}", may_be_empty=_NONE)
        for name, metric in metrics
    )
    return lines(title, f"{description} In 15 minutes, the ten devices with the most.", "number", *queries)


NPUS = Dashboard(
    "vpred-npu",
    "NPUs",
    "Devices of a run's hosts, from npu-exporter. Its counts of errors are gauges, and -1 is a reading that failed.",
    [
        variable("run", "Run", "label_values(vpred_launcher_attempt, run)"),
        variable("hostname", "Host", 'label_values(vpred_step_seconds_count{run="$run"}, hostname)', several=True),
    ],
    [
        stat(
            "Bad NPUs",
            "Devices whose health, network or link is reported as bad.",
            "number",
            f"""count(npu_chip_info_health_status{{{_H}}} == 0 or npu_chip_info_network_status{{{_H}}} == 0
            or npu_chip_info_link_status{{{_H}}} == 0) or vector(0)""",
            colors=[(None, "green"), (1, "red")],
        ),
        stat(
            "AI Core use", "Mean of all devices.", "percent", f"avg(npu_chip_info_utilization{{{_H}}} >= 0)", decimals=0
        ),
        stat("Power", "Sum of all devices.", "watt", f"sum(npu_chip_info_power{{{_H}}} >= 0)"),
        stat(
            "Hottest",
            "The hottest chip.",
            "celsius",
            f"max(npu_chip_info_temperature{{{_H}}} >= 0)",
            colors=[(None, "green"), (85, "orange"), (90, "red")],
        ),
        stat("Fullest HBM", "Share of the memory in use.", "share", f"max({_used()})", decimals=0),
        stat(
            "Double bit errors in 24 h",
            "Errors of HBM that cannot be corrected.",
            "number",
            f"sum({_errors('npu_chip_info_hbm_ecc_double_bit_error_cnt', '24h')}) or vector(0)",
            decimals=0,
            colors=[(None, "green"), (1, "red")],
        ),
        lines("Temperature", "The ten hottest.", "celsius", Query(worst(_by_rank("npu_chip_info_temperature")), _RANK)),
        lines(
            "AI Core use by rank",
            "The ten lowest.",
            "percent",
            Query(worst(_by_rank("npu_chip_info_utilization"), least=True), _RANK),
        ),
        lines(
            "Frequency of AI Cores",
            "The ten lowest. Heat and power limits lower it.",
            "hertz",
            Query(worst(f"1e6 * ({_by_rank('npu_chip_info_aicore_current_freq')})", least=True), _RANK),
        ),
        lines(
            "Power by host",
            "The ten hosts with the most.",
            "watt",
            Query(worst(f"sum by (hostname) (npu_chip_info_power{{{_H}}} >= 0)"), "{{hostname}}"),
        ),
        lines("HBM in use", "The ten fullest.", "share", Query(worst(_used()), "{{hostname}}/{{id}}"), limits=(0, 1)),
        _error_lines(
            "HBM errors",
            "Single bit errors are corrected, double bit errors are not.",
            ("single", "npu_chip_info_hbm_ecc_single_bit_error_cnt"),
            ("double", "npu_chip_info_hbm_ecc_double_bit_error_cnt"),
        ),
        _error_lines(
            "CRC errors of HCCS",
            "Errors on the links between the devices of a host.",
            ("CRC", "npu_chip_info_hccs_statistic_info_crc_err_cnt"),
        ),
        _error_lines(
            "RoCE retries and errors",
            "They often come before the codes EI0012 and EI0013.",
            ("retry", "npu_chip_roce_new_pkt_rty_num"),
            ("received", "npu_chip_roce_rx_err_pkt_num"),
            ("sent", "npu_chip_roce_tx_err_pkt_num"),
        ),
        lines(
            "Traffic of the devices' NICs",
            "Sent, by host, the ten lowest.",
            "bytes_per_s",
            Query(
                worst(f"1e6 * sum by (hostname) (npu_chip_info_bandwidth_tx{{{_H}}} >= 0)", least=True), "{{hostname}}"
            ),
        ),
        lines(
            "Traffic of HCCS",
            "Sent, by host, the ten lowest.",
            "bytes_per_s",
            Query(
                worst(f"1e9 * sum by (hostname) (npu_chip_info_hccs_bandwidth_info_total_tx{{{_H}}} >= 0)", least=True),
                "{{hostname}}",
            ),
        ),
    ],
)
