"""The dashboard Ranks: which rank, host or device holds up the others."""

from monitoring.dashboards.builder import Dashboard, Panel, Query, columns, lines, override, worst
from monitoring.dashboards.grafana import INTERVAL, variable

_R = 'run="$run"'
_RH = 'run="$run",hostname=~"$hostname"'
_RANK = "rank {{rank}} on {{hostname}}"
_OWN = "run_rank:vpred_own_step_seconds:mean5m"
_SLOWNESS = "run_rank:vpred_slowness:ratio5m"
_NO_MEMORY = "the device reports no memory, as CPU does"


def _share(part: str) -> str:
    return f'sum by (rank, hostname) (rate(vpred_step_part_seconds_total{{{_RH},part="{part}"}}[{INTERVAL}]))'


RANKS = Dashboard(
    "vpred-ranks",
    "Ranks",
    "Which rank, host or device holds up the others.",
    [
        variable("run", "Run", "label_values(vpred_launcher_attempt, run)"),
        variable("hostname", "Host", 'label_values(vpred_step_seconds_count{run="$run"}, hostname)', several=True),
    ],
    [
        Panel(
            "heatmap",
            "Slowness by host",
            "The slowest rank of each host: its own time per step over all ranks' median. 1 is as fast as the rest.",
            "number",
            [Query(f"max by (hostname) ({_SLOWNESS}{{{_RH}}})", "{{hostname}}")],
            24,
            12,
        ),
        Panel(
            "table",
            "Slowest ranks",
            "A rank's own time per step is without collectives. Its ratio is to the median of all ranks.",
            "number",
            [
                Query(f"topk(20, {_SLOWNESS}{{{_RH}}})", instant=True),
                Query(f"{_OWN}{{{_RH}}} and topk(20, {_SLOWNESS}{{{_RH}}})", instant=True),
            ],
            height=9,
            further={
                "transformations": columns(
                    {
                        "rank": "Rank",
                        "hostname": "Host",
                        "device_id": "Device",
                        "Value #A": "Ratio",
                        "Value #B": "Own time per step",
                    },
                    hidden=("__name__", "run"),
                )
            },
            overrides=[override("Ratio", decimals=2), override("Own time per step", unit="s")],
        ),
        lines(
            "Own time per step",
            "A step without collectives: fastest, median, 99th percentile and slowest rank.",
            "seconds",
            Query(f"min({_OWN}{{{_R}}})", "fastest"),
            Query(f"max(run:vpred_own_step_seconds:median5m{{{_R}}})", "median"),
            Query(f"quantile(0.99, {_OWN}{{{_R}}})", "99th percentile"),
            Query(f"max({_OWN}{{{_R}}})", "slowest"),
            height=9,
        ),
        lines(
            "Waiting for data",
            "Share of the wall clock, the ten ranks that wait longest.",
            "share",
            Query(worst(_share("data")), _RANK),
        ),
        lines(
            "In collectives",
            "Share of the wall clock, the ten ranks with the least. The others wait for a rank that waits little.",
            "share",
            Query(worst(_share("collective"), least=True), _RANK),
        ),
        lines(
            "Memory of processes",
            "Resident memory, the ten largest ranks.",
            "bytes",
            Query(worst(f"vpred_process_resident_memory_bytes{{{_RH}}}"), _RANK),
        ),
        lines(
            "Memory of devices",
            "Greatest memory that tensors had, as MindSpore reports it; the ten largest ranks.",
            "bytes",
            Query(worst(f'vpred_device_memory_bytes{{{_RH},kind="peak"}}'), _RANK, may_be_empty=_NO_MEMORY),
        ),
        lines(
            "Checkpoint write",
            "Time to write the last checkpoint, the ten slowest ranks.",
            "seconds",
            Query(
                worst(f'vpred_checkpoint_phase_seconds{{{_RH},phase="write"}}'),
                _RANK,
                may_be_empty="no checkpoint is saved yet",
            ),
        ),
        lines(
            "Ranks that answer",
            "Ranks that Prometheus can scrape.",
            "number",
            Query(f'sum(up{{job="vpred",{_R}}})', "answer"),
            Query(f"max(vpred_launcher_ranks{{{_R}}})", "planned"),
            width=6,
        ),
        lines(
            "Slowest scrape",
            "The slowest of all ranks. A rank that compiles answers late.",
            "seconds",
            Query(f'max(scrape_duration_seconds{{job="vpred",{_R}}})', "slowest"),
            width=6,
        ),
    ],
)
