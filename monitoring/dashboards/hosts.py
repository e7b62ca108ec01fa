"""The dashboard Hosts: what may slow the ranks of a host, from node exporter."""

from monitoring.dashboards.builder import Dashboard, Query, lines, worst
from monitoring.dashboards.grafana import INTERVAL, variable

_H = 'hostname=~"$hostname"'
_REAL_DEVICES = 'device!~"lo|veth.*|docker.*|cali.*|br-.*"'


def _cpu(mode: str) -> str:
    return f'avg by (hostname) (rate(node_cpu_seconds_total{{{_H},mode="{mode}"}}[{INTERVAL}]))'


def _traffic(direction: str) -> str:
    metric = f"node_network_{direction}_bytes_total{{{_H},{_REAL_DEVICES}}}"
    return f"sum by (hostname) (rate({metric}[{INTERVAL}]))"


def _disk(direction: str) -> str:
    return f"sum by (hostname) (rate(node_disk_{direction}_bytes_total{{{_H}}}[{INTERVAL}]))"


HOSTS = Dashboard(
    "vpred-hosts",
    "Hosts",
    "The causes on a host that slow its ranks. Node Exporter Full (grafana.com, 1860) shows everything else of a host.",
    [
        variable("run", "Run", "label_values(vpred_launcher_attempt, run)"),
        variable("hostname", "Host", 'label_values(vpred_step_seconds_count{run="$run"}, hostname)', several=True),
    ],
    [
        lines(
            "Memory left",
            "Share that can still be allocated, the ten hosts with the least.",
            "share",
            Query(
                worst(f"node_memory_MemAvailable_bytes{{{_H}}} / node_memory_MemTotal_bytes{{{_H}}}", least=True),
                "{{hostname}}",
            ),
            limits=(0, 1),
        ),
        lines("CPU in use", "The ten busiest hosts.", "share", Query(worst(f"1 - {_cpu('idle')}"), "{{hostname}}")),
        lines(
            "Waiting for storage",
            "Share of CPU time, the ten hosts that wait longest.",
            "share",
            Query(worst(_cpu("iowait")), "{{hostname}}"),
        ),
        lines(
            "Memory pressure",
            "Share of time in which a task waited for memory (PSI), the ten worst hosts.",
            "share",
            Query(
                worst(f"rate(node_pressure_memory_waiting_seconds_total{{{_H}}}[{INTERVAL}])"),
                "{{hostname}}",
                may_be_empty="a kernel without PSI",
            ),
        ),
        lines(
            "Network sent", "The hosts' own NICs.", "bytes_per_s", Query(worst(_traffic("transmit")), "{{hostname}}")
        ),
        lines(
            "Network received", "The hosts' own NICs.", "bytes_per_s", Query(worst(_traffic("receive")), "{{hostname}}")
        ),
        lines("Disk written", "All disks.", "bytes_per_s", Query(worst(_disk("written")), "{{hostname}}")),
        lines("Disk read", "All disks.", "bytes_per_s", Query(worst(_disk("read")), "{{hostname}}")),
    ],
)
