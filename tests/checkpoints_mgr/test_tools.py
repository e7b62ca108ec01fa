"""vpred-ckpt consolidate, diff and prune: whole tensors, bit for bit, and nothing removed that should stay."""

import json
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from checkpoints_mgr import CheckpointManager, State


def test_whole_tensors_of_shards_in_one_file(two_steps, tmp_path, make_state, vpred_ckpt, monkeypatch):
    """Read back by the safetensors package, in batches that cut tensors."""
    monkeypatch.setattr("checkpoints_mgr.disk.streaming.BATCH_BYTES", 100)
    state = make_state(2)
    assert vpred_ckpt("consolidate", two_steps, tmp_path / "model.safetensors")[0] == 0
    names = ["--component", "adam_m", "--component", "ema"]
    assert vpred_ckpt("consolidate", two_steps / "step_0000000020", tmp_path / "two.safetensors", *names)[0] == 0
    found = {f"model/{key}": tensor for key, tensor in load_file(tmp_path / "model.safetensors").items()}
    found |= load_file(tmp_path / "two.safetensors")
    expected = {name: tensor for name, tensor in state.whole.items() if not name.startswith("adam_v")}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        little = tensor.astype(tensor.dtype.newbyteorder("<"))
        assert (found[name].dtype, found[name].shape) == (little.dtype, little.shape)
        assert found[name].tobytes() == little.tobytes(), name
    with safe_open(tmp_path / "two.safetensors", framework="np") as file:
        assert file.metadata() == {"ckptmgr.step": "20", "ckptmgr.recipe": json.dumps({"seed": 2})}


def test_consolidating_holds_a_batch_and_no_more(tmp_path, vpred_ckpt, monkeypatch):
    monkeypatch.setattr("checkpoints_mgr.disk.streaming.BATCH_BYTES", 1 << 20)
    monkeypatch.setattr("checkpoints_mgr.disk.reading.BLOCK_BYTES", 1 << 16)
    state = State({f"model/{name}": np.ones((1 << 21) // 4, np.float32) for name in range(16)}, {})
    CheckpointManager(tmp_path / "root").save(1, state)
    tracemalloc.start()
    code, _, _ = vpred_ckpt("consolidate", tmp_path / "root", tmp_path / "out.safetensors")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == 0
    assert (tmp_path / "out.safetensors").stat().st_size > 32 << 20
    assert peak_bytes < 4 << 20


def test_what_cannot_be_consolidated_leaves_no_file(two_steps, tmp_path, vpred_ckpt, flip_bit, names):
    output = tmp_path / "out" / "model.safetensors"
    output.parent.mkdir()
    code, _, err = vpred_ckpt("consolidate", two_steps, output, "--component", "lora")
    assert (code, err) == (2, "vpred-ckpt: no component lora; there are: adam_m, adam_v, ema, model\n")
    flip_bit(next((two_steps / "step_0000000020").glob("model-*")), -1)
    code, _, err = vpred_ckpt("consolidate", two_steps, output)
    assert code == 1
    assert "digest mismatch" in err
    assert names(output.parent) == []
    code, _, err = vpred_ckpt("consolidate", two_steps, output.parent / "no" / "model.safetensors")
    assert (code, err) == (2, f"vpred-ckpt: {output.parent / 'no'} is not a directory; make it, or give another path\n")
    output.write_text("something of mine")
    assert vpred_ckpt("consolidate", two_steps / "step_0000000010", output)[0] == 2
    assert output.read_text() == "something of mine"


def test_two_commands_that_write_one_file_leave_each_other_alone(two_steps, tmp_path, vpred_ckpt):
    """Or what one left that was killed."""
    part = tmp_path / "model.safetensors.part"
    part.write_text("half of it")
    code, _, err = vpred_ckpt("consolidate", two_steps, tmp_path / "model.safetensors")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{part} is being written, or was left by a command that was killed" in err
    assert part.read_text() == "half of it"


def test_diff(two_steps, tmp_path, make_state, vpred_ckpt):
    """One was written whole by one rank, the other in shards by two: they are the same if their tensors are."""
    CheckpointManager(tmp_path / "same").save(7, make_state(2))
    assert vpred_ckpt("diff", two_steps, tmp_path / "same") == (0, "the same, bit for bit\n", "")
    state = make_state(2)
    state.whole["adam_m/clip.table"][3, :2] += np.float32(0.5)
    state.whole["model/nan"][1] = 0.0  # instead of -0.0
    state.whole["model/more"] = state.whole.pop("model/mask")
    CheckpointManager(tmp_path / "other").save(7, state)
    code, out, _ = vpred_ckpt("diff", two_steps, tmp_path / "other", "--json")
    assert code == 1
    found = {each["name"]: each for each in json.loads(out)}
    assert found.keys() == {"adam_m/clip.table", "model/nan", "model/more", "model/mask"}
    assert found["adam_m/clip.table"]["elements"] == 2
    assert found["adam_m/clip.table"]["largest"] == pytest.approx(0.5, abs=1e-6)
    assert (found["model/nan"]["elements"], found["model/nan"]["largest"]) == (1, 0.0)
    assert found["model/mask"]["fault"] == "BOOL [5] in the first, nothing in the second"


def test_prune_tells_and_only_then_removes(tmp_path, make_state, vpred_ckpt, names):
    root = tmp_path / "root"
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4), (4, 0.3)):
        CheckpointManager(root).save(step, make_state(step), {"validation_loss": loss})
        (root / f"step_{step:010d}.keep").touch()
    for step in (1, 2, 3):
        (root / f"step_{step:010d}.keep").unlink()
    (root / ".tmp-step_0000000005-abc@nobody").mkdir()
    (root / ".trash-step_0000000000-abc").mkdir()
    before = names(root)
    arguments = ["prune", root, "--keep-last", "1", "--keep-best", "1"]
    code, out, _ = vpred_ckpt(*arguments, "--json")
    assert (code, json.loads(out)) == (0, ["step_0000000001", "step_0000000003", ".trash-step_0000000000-abc"])
    assert names(root) == before
    code, out, _ = vpred_ckpt(*arguments, "--delete")
    assert code == 0
    assert out.count("removed ") == 3
    assert [name for name in before if name not in names(root)] == [
        ".trash-step_0000000000-abc", "step_0000000001", "step_0000000003",
    ]  # fmt: skip
    assert vpred_ckpt(*arguments) == (0, "nothing to remove\n", "")
    assert vpred_ckpt("prune", root, "--keep-last", "0")[0] == 2
    assert vpred_ckpt("prune", tmp_path / "nowhere")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--keep-best", "1", "--metric", "fid"], "has the metric fid; there are: validation_loss"),
        (["--keep-best", "-1"], "keep_best is -1; expected 0 or more"),
        (["--keep-every", "0"], "keep_every is 0; expected at least 1 step"),
    ],
)
def test_a_retention_that_cannot_be_meant_removes_nothing(tmp_path, make_state, vpred_ckpt, names, arguments, fault):
    for step in (1, 2, 3):
        CheckpointManager(tmp_path).save(step, make_state(step), {"validation_loss": 0.5})
    before = names(tmp_path)
    code, out, err = vpred_ckpt("prune", tmp_path, "--keep-last", "1", "--delete", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fault in err
    assert names(tmp_path) == before


def test_a_folder_that_is_no_root_is_not_called_clean(two_steps, vpred_ckpt):
    for folder in (two_steps.parent, two_steps / "step_0000000020"):
        code, _, err = vpred_ckpt("prune", folder)
        assert (code, err) == (
            2, f"vpred-ckpt: {folder} holds no step_... directory; give a checkpoint root, such as RUN/checkpoints\n"
        )  # fmt: skip


def test_a_clock_that_is_ahead_gives_up_no_others_save(two_steps, vpred_ckpt, names, monkeypatch):
    save = two_steps / ".tmp-step_0000000030-abc@elsewhere.1.2.3.4"
    save.mkdir()
    monkeypatch.setattr("checkpoints_mgr.cli.time.time", lambda: save.stat().st_mtime + 10 * 3600)
    assert vpred_ckpt("prune", two_steps, "--delete") == (0, "nothing to remove\n", "")
    assert save.name in names(two_steps)
