"""A run that an older version began (tests/golden/make_old_run.py) goes on, and one of a future version is refused."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from checkpoints_mgr.disk.digests import canonical_json, document_digest
from golden.make_old_run import ARCHIVE, EXPECTED, PLACEHOLDER, RECIPE, sums
from launcher.contract.run_dir import RunDir
from support.jobs import end, losses, start

STEPS_BEFORE, STEPS = 2, 6
# MindSpore's own operations are out by 1e-7 of a loss and 2e-5 of a sum. A resume that forgets the moments, the number
# of steps or when the averages were updated is out by 40 %, 8 % and 4 % of a sum.
LOSS_TOLERANCE, SUM_TOLERANCE = 1e-5, 2e-4


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """The run directory, with data, weights and recipe.yaml beside it, as if it had been made here."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = tmp_path / "run"
    yaml = RunDir(run).train_yaml
    yaml.write_text(yaml.read_text().replace(PLACEHOLDER, str(tmp_path)))
    return run


def test_it_goes_on_as_it_did_with_the_version_that_began_it(old_run: Path) -> None:
    expected = json.loads(EXPECTED.read_text())
    assert losses(old_run) == expected["losses"][:STEPS_BEFORE]
    code, output = end(start(old_run.parent / "recipe.yaml", old_run, 2))
    assert code == 0, output
    assert f"resumed from step {STEPS_BEFORE}" in RunDir(old_run).attempt(3).log(0).read_text()
    np.testing.assert_allclose(losses(old_run), expected["losses"], rtol=LOSS_TOLERANCE)
    found = sums(RunDir(old_run).manifest(STEPS).parent)
    assert found.keys() == expected["sums"].keys()
    for component, total in expected["sums"].items():
        assert found[component] == pytest.approx(total, rel=SUM_TOLERANCE), component


def test_a_checkpoint_of_a_future_version_is_refused(old_run: Path) -> None:
    path = RunDir(old_run).manifest(STEPS_BEFORE)
    document = json.loads(path.read_text()) | {"version": 99, "min_reader": 99}
    del document["digest"]
    path.write_bytes(canonical_json(document | {"digest": document_digest(document)}))
    before = path.read_bytes()
    code, output = end(start(old_run.parent / "recipe.yaml", old_run, 1))
    assert code == 2, output
    assert "Traceback" not in output
    assert "needs reader version 99, this one is 1; install a newer vpred" in output
    assert path.read_bytes() == before
