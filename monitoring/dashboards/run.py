"""The dashboard Run: does one run learn, how fast is it, and what does it lose."""

from monitoring.dashboards.builder import Dashboard, Panel, Query, Row, lines, override, stat
from monitoring.dashboards.grafana import INTERVAL, STACKED, STEPS, logarithmic, variable

_R = 'run="$run"'
_NO_VALIDATION = "a run without validation"
_NO_CHECKPOINT = "no checkpoint is saved yet"
_NO_FLOPS = "FLOPs of this model are not counted"

_NOW: list[Panel | Row] = [
    stat(
        "Progress",
        "The step over all steps.",
        "share",
        f"max(vpred_launcher_step{{{_R}}}) / max(vpred_launcher_total_steps{{{_R}}})",
        3,
        decimals=1,
    ),
    stat(
        "Left",
        "At the speed of the last 30 minutes.",
        "seconds",
        f"max(run:vpred_eta:seconds{{{_R}}})",
        3,
        may_be_empty="the run has ended",
    ),
    stat(
        "Ends at",
        "In the time zone of this browser.",
        "date",
        f"1000 * (time() + max(run:vpred_eta:seconds{{{_R}}}))",
        5,
        may_be_empty="the run has ended",
    ),
    stat(
        "Images per second",
        "All ranks, mean of five minutes.",
        "number",
        f"max(run:vpred_samples:rate5m{{{_R}}})",
        3,
        decimals=1,
    ),
    stat(
        "MFU",
        "Model FLOP/s over the ceiling of matrix products that each rank measured at its start.",
        "share",
        f"max(run:vpred_mfu:ratio5m{{{_R}}})",
        2,
        decimals=1,
        may_be_empty=_NO_FLOPS,
    ),
    stat(
        "Checkpoint age",
        "Since the newest checkpoint of any attempt.",
        "seconds",
        f"time() - max(last_over_time(vpred_last_checkpoint_timestamp_seconds{{{_R}}}[1d]))",
        3,
        may_be_empty=_NO_CHECKPOINT,
    ),
    stat("Ranks", "Ranks whose status is younger than 15 s.", "number", f"max(vpred_launcher_ranks_alive{{{_R}}})", 2),
    stat(
        "Attempt",
        "Number of the newest start.",
        "number",
        f"max(vpred_launcher_attempt{{{_R}}})",
        3,
        colors=[(None, "green"), (2, "orange")],
    ),
]

_LEARNS: list[Panel | Row] = [
    Row("Does it learn"),
    lines(
        "Training loss",
        "Mean over the finite steps of each interval. The thin curve is the last step alone.",
        "number",
        Query(
            f"""sum(rate(vpred_step_loss_sum{{{_R}}}[{INTERVAL}]))
            / sum(rate(vpred_step_loss_count{{{_R}}}[{INTERVAL}]))""",
            "mean",
        ),
        Query(f"max(vpred_loss{{{_R}}})", "last step"),
        overrides=[override("last step", color={"mode": "fixed", "fixedColor": "text"}, custom__lineWidth=0.4)],
    ),
    lines(
        "Validation loss",
        "Held-out images, all noise levels; the second curve is one standard error higher.",
        "number",
        Query(
            f'max by (weights) (vpred_validation_loss{{{_R},bin="all"}})', "{{weights}}", may_be_empty=_NO_VALIDATION
        ),
        Query(
            f"""max by (weights) (vpred_validation_loss{{{_R},bin="all"}}
            + vpred_validation_loss_standard_error{{{_R},bin="all"}})""",
            "{{weights}} + 1 s.e.",
            may_be_empty=_NO_VALIDATION,
        ),
        custom=STEPS,
    ),
    lines(
        "Validation loss by log SNR",
        "The weights as trained, without averaging: shows which noise levels get worse.",
        "number",
        Query(
            f'max by (log_snr) (vpred_validation_loss{{{_R},bin!="all",weights="raw"}})',
            "{{log_snr}}",
            may_be_empty=_NO_VALIDATION,
        ),
        custom=STEPS,
    ),
    lines(
        "Gradient norm",
        "Before clipping: median and 99th percentile over the steps of each interval.",
        "number",
        Query(
            f"histogram_quantile(0.5, sum by (le) (rate(vpred_step_grad_norm_bucket{{{_R}}}[{INTERVAL}])))", "median"
        ),
        Query(
            f"histogram_quantile(0.99, sum by (le) (rate(vpred_step_grad_norm_bucket{{{_R}}}[{INTERVAL}])))",
            "99th percentile",
        ),
        custom=logarithmic(10),
    ),
    lines(
        "Learning rate",
        "The value of the last step.",
        "small_number",
        Query(f"max(vpred_learning_rate{{{_R}}})", "learning rate"),
        width=8,
    ),
    lines(
        "Skipped steps",
        "Steps without an update in each interval: loss or gradient not finite, or the loss scale too large.",
        "number",
        Query(f"sum(increase(vpred_nonfinite_steps_total{{{_R}}}[{INTERVAL}]))", "not finite"),
        Query(f"sum(increase(vpred_overflow_steps_total{{{_R}}}[{INTERVAL}]))", "overflow"),
        width=8,
    ),
    lines(
        "Loss scale",
        "1 is none.",
        "number",
        Query(f"max(vpred_loss_scale{{{_R}}})", "loss scale"),
        width=8,
        custom=logarithmic(2),
    ),
]

_SPEED: list[Panel | Row] = [
    Row("How fast"),
    lines(
        "Images per second over time",
        "All ranks together, and the median of three hours.",
        "number",
        Query(f"sum(rate(vpred_samples_total{{{_R}}}[{INTERVAL}]))", "now"),
        Query(f"max(quantile_over_time(0.5, run:vpred_samples:rate5m{{{_R}}}[3h]))", "median of 3 h"),
    ),
    lines(
        "Where the time goes",
        "Share of the wall clock: parts of steps, and pauses between them. The rest to 100 % is start and restart.",
        "share",
        Query(f"avg by (part) (rate(vpred_step_part_seconds_total{{{_R}}}[{INTERVAL}]))", "{{part}}"),
        Query(f'max by (cause) (rate(vpred_pause_seconds_total{{{_R},rank="0"}}[{INTERVAL}]))', "{{cause}}"),
        custom=STACKED,
        limits=(0, 1),
    ),
    lines(
        "Step time",
        "Mean over the steps of each interval.",
        "seconds",
        Query(
            f"""max(rate(vpred_step_seconds_sum{{{_R},rank="0"}}[{INTERVAL}])
            / rate(vpred_step_seconds_count{{{_R},rank="0"}}[{INTERVAL}]))""",
            "step",
        ),
    ),
    lines(
        "Model FLOPs utilisation",
        "Model FLOP/s over the ceiling of matrix products that each rank measured at its start.",
        "share",
        Query(
            f"""sum(rate(vpred_model_flops_total{{{_R}}}[{INTERVAL}]))
            / sum(last_over_time(vpred_flops_ceiling{{{_R}}}[10m]))""",
            "MFU",
            may_be_empty=_NO_FLOPS,
        ),
    ),
]

_LOSES: list[Panel | Row] = [
    Row("Checkpoints and lost time"),
    lines(
        "Checkpoint age over time",
        "Falls to 0 at each checkpoint.",
        "seconds",
        Query(
            f"time() - max(last_over_time(vpred_last_checkpoint_timestamp_seconds{{{_R}}}[1d]))",
            "age",
            may_be_empty=_NO_CHECKPOINT,
        ),
        width=8,
    ),
    lines(
        "Checkpoint phases",
        "The slowest rank of each phase of the last checkpoint.",
        "seconds",
        Query(f"max by (phase) (vpred_checkpoint_phase_seconds{{{_R}}})", "{{phase}}", may_be_empty=_NO_CHECKPOINT),
        width=8,
        custom=STACKED,
    ),
    lines(
        "Free space",
        "The run directory's disk, beside the size of a checkpoint.",
        "bytes",
        Query(f"max(vpred_launcher_run_dir_free_bytes{{{_R}}})", "free"),
        Query(f"max(vpred_checkpoint_size_bytes{{{_R}}})", "one checkpoint", may_be_empty=_NO_CHECKPOINT),
        width=8,
        custom=logarithmic(10),
    ),
    Panel(
        "bargauge",
        "Time lost by cause",
        "In the time range shown.",
        "seconds",
        [
            Query(
                f"max by (cause) (increase(vpred_launcher_lost_seconds_total{{{_R}}}[$__range]))",
                "{{cause}}",
                instant=True,
            )
        ],
        8,
        8,
        colors=[(None, "orange")],
    ),
    lines(
        "Goodput",
        "Share of the last hour in steps that counted.",
        "share",
        Query(f"max(run:vpred_goodput:ratio1h{{{_R}}})", "goodput"),
        width=8,
        limits=(0, 1),
    ),
    Panel(
        "bargauge",
        "Failures by host",
        "In the time range shown, the ten hosts with the most.",
        "number",
        [
            Query(
                f"topk(10, max by (host) (increase(vpred_launcher_failures_total{{{_R}}}[$__range])) > 0)",
                "{{host}}",
                instant=True,
                may_be_empty="no host failed",
            )
        ],
        8,
        8,
        decimals=0,
        colors=[(None, "red")],
    ),
    Panel(
        "text",
        "Pictures and report",
        "Where the files of a run are shown.",
        None,
        [],
        24,
        3,
        options={
            "content": "`vpred-launch serve FOLDER` shows previews, samples, logs and the report of every run in FOLDER"
            " at `http://127.0.0.1:9399/runs/${run}/` on the host where it runs."
        },
    ),
]

RUN = Dashboard(
    "vpred-run",
    "Run",
    "One run from its first step to its last: does it learn, how fast is it, what does it lose.",
    [variable("run", "Run", "label_values(vpred_launcher_attempt, run)")],
    [*_NOW, *_LEARNS, *_SPEED, *_LOSES],
)
