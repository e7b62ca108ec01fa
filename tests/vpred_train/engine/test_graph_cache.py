"""The cached training graph: it computes what a compiled one does, and only where nothing has changed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.programs import cached_process
from support.programs.cached_process import CONFIG, make_cell, make_inputs
from vpred_train.engine import graph_cache
from vpred_train.engine.graph_cache import graph_key, is_sound


def run(folder: Path, seed: int) -> tuple[list[np.ndarray], str]:
    """Loss, gradients by W and b, W and b as a process finds them, and its log."""
    command = [sys.executable, cached_process.__file__, folder, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loss, gradients, parameters = json.loads(done.stdout.splitlines()[-1])
    return [np.array(each) for each in (loss, *gradients, *parameters)], done.stderr


def test_a_restart_reads_the_graph_and_uses_its_own_weights(tmp_path: Path) -> None:
    x, y = (each.asnumpy().astype(np.float64) for each in make_inputs()[:2])
    for seed, taken in ((1, False), (2, True)):
        (loss, by_weight, by_bias, weight, bias), log = run(tmp_path / "graphs", seed)
        error = x @ weight.T + bias - y
        np.testing.assert_allclose(loss, np.mean(error**2), rtol=1e-5)
        np.testing.assert_allclose(by_weight, 2 * error.T @ x / error.size, rtol=1e-5)
        np.testing.assert_allclose(by_bias, 2 * error.sum(0) / error.size, rtol=1e-5)
        assert ("compiled graph taken from" in log) is taken
        (entry,) = (tmp_path / "graphs").iterdir()
        assert is_sound(entry)
        assert [path.suffix for path in graph_cache.files_in(entry)].count(".mindir") == 1


def test_the_key_follows_code_recipe_weights_and_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make_cell(1)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(graph_cache, "PACKAGE", tmp_path)
    keys = [graph_key(CONFIG, cell, make_inputs())]
    assert keys == [graph_key(CONFIG, make_cell(2), make_inputs())]
    keys.append(graph_key(CONFIG, cell, make_inputs(8)))
    keys.append(graph_key(CONFIG.model_copy(update={"recompute": True}), cell, make_inputs()))
    next(iter(cell.get_parameters())).requires_grad = False
    keys.append(graph_key(CONFIG, cell, make_inputs()))
    (tmp_path / "room" / "a.py").write_text("x = 2\n")
    keys.append(graph_key(CONFIG, cell, make_inputs()))
    monkeypatch.setattr(graph_cache.library, "_loaded", Path("other.so"))
    keys.append(graph_key(CONFIG, cell, make_inputs()))
    assert len(set(keys)) == len(keys) == 6


def test_the_key_covers_every_room_of_the_package() -> None:
    package = graph_cache.PACKAGE
    assert {"engine", "models", "kernels", "diffusion"} <= {path.parent.name for path in package.rglob("*.py")}
    assert package.name == "vpred_train"


def test_an_entry_that_is_damaged_or_unfinished_is_not_sound(tmp_path: Path) -> None:
    graph = tmp_path / "rank_0" / "graph.mindir"
    graph.parent.mkdir()
    graph.write_bytes(b"a graph")
    assert not is_sound(tmp_path)
    (tmp_path / graph_cache.DIGEST).write_text(graph_cache.digest_of([graph]))
    assert is_sound(tmp_path)
    graph.write_bytes(b"a grapi")
    assert not is_sound(tmp_path)
