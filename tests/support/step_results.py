"""A step's result, for the tests of what looks at it."""

from vpred_train.engine.step_result import StepResult

RESULT = StepResult(
    step=3,
    samples_seen=48,
    loss=0.5,
    grad_norm=1.0,
    learning_rate=1e-4,
    finite=True,
    overflow=False,
    loss_scale=1.0,
    nonfinite_samples={},
    step_seconds=0.25,
    data_wait_seconds=0.01,
    encode_seconds=0.03,
    forward_backward_seconds=0.15,
    collective_seconds=0.02,
    update_seconds=0.04,
    graph_seconds=0.0,
)
