"""The dashboard Runs: every run at a glance, from the launchers' metrics and the recording rules alone."""

from monitoring.dashboards.builder import Dashboard, Panel, Query, columns, lines, override, stat
from monitoring.dashboards.grafana import variable

_R = 'run=~"$run"'
# The state of a run as one number: what most matters has the greatest. 0 is "no rank reports".
_STATES = (
    ("no rank reports", "text", None),
    ("starting", "yellow", f'vpred_launcher_ranks_in_phase{{{_R},phase="starting"}}'),
    ("compiling", "purple", f'vpred_launcher_ranks_in_phase{{{_R},phase="compiling"}}'),
    ("checkpointing", "light-blue", f'vpred_launcher_ranks_in_phase{{{_R},phase="checkpointing"}}'),
    ("sampling", "light-blue", f'vpred_launcher_ranks_in_phase{{{_R},phase="sampling"}}'),
    ("validating", "blue", f'vpred_launcher_ranks_in_phase{{{_R},phase="validating"}}'),
    ("training", "green", f'vpred_launcher_ranks_in_phase{{{_R},phase="training"}}'),
    ("complete", "dark-green", f'vpred_launcher_run_state{{{_R},state="complete"}}'),
    ("stopped", "orange", f'vpred_launcher_run_state{{{_R},state="stopped"}}'),
    ("failed", "red", f'vpred_launcher_run_state{{{_R},state="failed"}}'),
    ("lost", "dark-red", f'vpred_launcher_run_state{{{_R},state="lost"}}'),
)
_STATE_NUMBER = " or ".join(f"{number} * ({expr} > bool 0)" for number, (_, _, expr) in enumerate(_STATES) if expr)
_STATE_NAMES = {
    "type": "value",
    "options": {
        str(number): {"text": name, "color": color, "index": number} for number, (name, color, _) in enumerate(_STATES)
    },
}
_RUNS_NOW = f"vpred_launcher_attempt_running{{{_R}}} == 1"
_NOT_YET = "the rates of five minutes come after the first steps"
_TABLE = {
    "run": "Run",
    "Value #A": "Progress",
    "Value #B": "Left",
    "Value #C": "Images/s",
    "Value #D": "Loss",
    "Value #E": "Checkpoint age",
    "Value #F": "Ranks alive",
    "Value #G": "Attempt",
    "Value #H": "Lost in 24 h",
}

RUNS = Dashboard(
    "vpred-overview",
    "Runs",
    "Every run at a glance, from the launchers' metrics: one scrape target for a run, or one for all.",
    [variable("run", "Run", "label_values(vpred_launcher_attempt, run)", several=True)],
    [
        stat(
            "Runs with ranks",
            "Runs whose launcher reports a running attempt.",
            "number",
            f"sum(max by (run) (vpred_launcher_attempt_running{{{_R}}})) or vector(0)",
        ),
        stat(
            "Ranks alive",
            "Ranks whose status is younger than 15 s, over the ranks of the attempts that run.",
            "share",
            f"sum(max by (run) (vpred_launcher_ranks_alive{{{_R}}}) and on (run) {_RUNS_NOW})"
            f" / sum(max by (run) (vpred_launcher_ranks{{{_R}}}) and on (run) {_RUNS_NOW})",
            colors=[(None, "red"), (1, "green")],
            may_be_empty="no attempt runs",
        ),
        stat(
            "Firing alerts",
            "Pages and warnings that fire now.",
            "number",
            'count(ALERTS{alertstate="firing",severity=~"page|warn"}) or vector(0)',
            colors=[(None, "green"), (1, "red")],
        ),
        stat(
            "Images per second",
            "Sum over the runs, mean of five minutes.",
            "number",
            f"sum(run:vpred_samples:rate5m{{{_R}}}) or vector(0)",
            decimals=1,
        ),
        stat(
            "Failures in 24 h",
            "Attempts that ended in a failure.",
            "number",
            f"sum(max by (run, host) (increase(vpred_launcher_failures_total{{{_R}}}[24h]))) or vector(0)",
            decimals=0,
            colors=[(None, "green"), (1, "orange")],
        ),
        stat(
            "Time lost in 24 h",
            "Seconds that trained nothing new, of all causes and runs.",
            "seconds",
            f"sum(max by (run, cause) (increase(vpred_launcher_lost_seconds_total{{{_R}}}[24h]))) or vector(0)",
        ),
        Panel(
            "table",
            "Runs",
            "One line for each run. The name leads to the run's dashboard.",
            "number",
            [
                Query(
                    f"max by (run) (vpred_launcher_step{{{_R}}}) / max by (run) (vpred_launcher_total_steps{{{_R}}})",
                    instant=True,
                ),
                Query(f"run:vpred_eta:seconds{{{_R}}}", instant=True, may_be_empty=_NOT_YET),
                Query(f"run:vpred_samples:rate5m{{{_R}}}", instant=True, may_be_empty=_NOT_YET),
                Query(f"run:vpred_loss:mean5m{{{_R}}}", instant=True, may_be_empty=_NOT_YET),
                Query(
                    f"time() - max by (run) (last_over_time(vpred_last_checkpoint_timestamp_seconds{{{_R}}}[1d]))",
                    instant=True,
                    may_be_empty="no checkpoint is saved yet",
                ),
                Query(f"max by (run) (vpred_launcher_ranks_alive{{{_R}}})", instant=True),
                Query(f"max by (run) (vpred_launcher_attempt{{{_R}}})", instant=True),
                Query(
                    f"sum by (run) (max by (run, cause) (increase(vpred_launcher_lost_seconds_total{{{_R}}}[1d])))",
                    instant=True,
                ),
            ],
            24,
            9,
            further={"transformations": columns(_TABLE)},
            overrides=[
                override(
                    "Run",
                    links=[
                        {
                            "title": "Open the run",
                            "url": "/d/vpred-run?var-run=${__value.raw}&${__url_time_range}&${datasource:queryparam}",
                        }
                    ],
                ),
                override("Progress", unit="percentunit", max=1, custom__cellOptions={"type": "gauge", "mode": "basic"}),
                *(override(name, unit="s") for name in ("Left", "Checkpoint age", "Lost in 24 h")),
                override("Images/s", decimals=1),
                override("Loss", decimals=4),
            ],
        ),
        Panel(
            "state-timeline",
            "State",
            "The phase of each run's ranks, and how the run ended.",
            "number",
            [Query(f"max by (run) ({_STATE_NUMBER})", "{{run}}")],
            24,
            7,
            mappings=[_STATE_NAMES],
        ),
        lines(
            "Images per second by run",
            "Mean of five minutes.",
            "number",
            Query(f"run:vpred_samples:rate5m{{{_R}}}", "{{run}}"),
        ),
        lines(
            "Loss by run",
            "Mean of five minutes over the finite steps.",
            "number",
            Query(f"run:vpred_loss:mean5m{{{_R}}}", "{{run}}"),
        ),
    ],
)
