"""Values of torch-fidelity 0.4.0 on seeded features: metric_fid, metric_kid (one subset), metric_prc (k = 3)."""

import numpy as np
import pytest

from vpred_train.evaluation.frechet import frechet_distance
from vpred_train.evaluation.kernels import kid
from vpred_train.evaluation.neighbours import ball_metrics


def test_values_equal_torch_fidelitys() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 40))
    y = rng.normal(size=(250, 40)) * 1.2 + 0.3
    assert frechet_distance(x, y) == pytest.approx(9.102879607060572, rel=1e-10)
    assert kid(x[:250], y)[0] == pytest.approx(0.31395092257751367, rel=1e-10)
    found = ball_metrics(x, y)
    assert found.precision == pytest.approx(0.903333306312561, rel=1e-6)  # theirs is float32
    assert found.recall == pytest.approx(0.23999999463558197, rel=1e-6)
