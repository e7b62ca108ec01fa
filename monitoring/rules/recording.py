"""The recording rules: what several panels and alerts ask, asked once. Names are level:metric:operation."""

_BY_RANK = "sum by (run, rank, hostname, device_id)"

# Name -> expression. `> 0` below a division: no step is no value, since 0/0 would make each comparison false.
RECORDING = {
    # The sum of each rank's own counter: missing ranks leave it right.
    "run:vpred_samples:rate5m": "sum by (run) (rate(vpred_samples_total[5m]))",
    "run:vpred_step_seconds:mean5m": """
        sum by (run) (rate(vpred_step_seconds_sum{rank="0"}[5m]))
        / (sum by (run) (rate(vpred_step_seconds_count{rank="0"}[5m])) > 0)""",
    "run_part:vpred_wall:ratio5m": "avg by (run, part) (rate(vpred_step_part_seconds_total[5m]))",
    # In collectives, and in the graph of the device engine, a rank waits for the others. The rest is its own time.
    "run_rank:vpred_own_step_seconds:mean5m": f"""
        ({_BY_RANK} (rate(vpred_step_seconds_sum[5m]))
        - {_BY_RANK} (rate(vpred_step_part_seconds_total{{part=~"collective|graph"}}[5m])))
        / ({_BY_RANK} (rate(vpred_step_seconds_count[5m])) > 0)""",
    "run:vpred_own_step_seconds:median5m": "quantile by (run) (0.5, run_rank:vpred_own_step_seconds:mean5m)",
    "run_rank:vpred_slowness:ratio5m": """
        run_rank:vpred_own_step_seconds:mean5m / on (run) group_left run:vpred_own_step_seconds:median5m""",
    "run:vpred_loss:mean5m": """
        sum by (run) (rate(vpred_step_loss_sum[5m])) / (sum by (run) (rate(vpred_step_loss_count[5m])) > 0)""",
    "run:vpred_grad_norm:p99_5m": """
        histogram_quantile(0.99, sum by (run, le) (rate(vpred_step_grad_norm_bucket[5m])))""",
    # At a crash gauges vanish before rates do. Without last_over_time the ratio would jump.
    "run:vpred_mfu:ratio5m": """
        sum by (run) (rate(vpred_model_flops_total[5m])) / sum by (run) (last_over_time(vpred_flops_ceiling[10m]))""",
    "run:vpred_eta:seconds": """
        (max by (run) (vpred_total_samples) - max by (run) (vpred_samples_seen))
        / (sum by (run) (rate(vpred_samples_total[30m])) > 0)""",
    "run:vpred_goodput:ratio1h": "max by (run) (rate(vpred_launcher_trained_seconds_total[1h]))",
}
