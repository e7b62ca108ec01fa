"""vpred-ckpt: exit codes, JSON, and that looking changes nothing."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_mgr.disk.digests import canonical_json, document_digest


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_good_steps_exit_0(two_steps, make_state, vpred_ckpt, command):
    code, out, err = vpred_ckpt(command, two_steps, "--json")
    assert (code, err) == (0, "")
    newest, older = json.loads(out)
    assert (newest["step"], older["step"]) == (20, 10)
    assert newest["progress"] == make_state(2).progress
    assert newest["tensors"] == {"adam_m": 5, "adam_v": 4, "ema": 4, "model": 11}
    assert newest["world_size"] == 2
    assert newest["fault"] == ""
    code, out, err = vpred_ckpt(command, two_steps / "step_0000000010")
    assert (code, err) == (0, "")
    assert out.startswith("ok step 10, saved 20")


def test_a_flipped_data_bit_is_seen_by_verify_only(two_steps, vpred_ckpt, flip_bit, names):
    victim = two_steps / "step_0000000010" / "ema-00001-of-00002.safetensors"
    flip_bit(victim, -1)
    assert vpred_ckpt("inspect", two_steps)[0] == 0
    code, out, _ = vpred_ckpt("verify", two_steps)
    assert code == 1
    assert f"CORRUPT {two_steps / 'step_0000000010'}: {victim}: digest mismatch" in out
    assert "ok step 20" in out
    assert vpred_ckpt("verify", two_steps / "step_0000000020")[0] == 0
    assert names(two_steps) == ["step_0000000010", "step_0000000020"]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_flipped_manifest_bit_exits_1(two_steps, vpred_ckpt, flip_bit, command):
    flip_bit(two_steps / "step_0000000020" / "MANIFEST.json", 30)
    code, out, _ = vpred_ckpt(command, two_steps, "--json")
    assert code == 1
    assert "MANIFEST.json" in json.loads(out)[0]["fault"]


def test_a_step_without_manifest_exits_1(two_steps, vpred_ckpt):
    (two_steps / "step_0000000020" / "MANIFEST.json").unlink()
    assert vpred_ckpt("inspect", two_steps / "step_0000000020")[0] == 1


def test_what_cannot_be_met_exits_2(tmp_path, two_steps, vpred_ckpt):
    code, _, err = vpred_ckpt("verify", tmp_path / "nowhere")
    assert (code, err.count("\n")) == (2, 1)
    assert "nowhere is not a directory" in err
    (tmp_path / "empty").mkdir()
    code, _, err = vpred_ckpt("inspect", tmp_path / "empty")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds no step_... directory and no MANIFEST.json; give a checkpoint root, such as RUN/checkpoints" in err
    assert vpred_ckpt("mend", two_steps)[0] == 2
    assert vpred_ckpt("verify")[0] == 2


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_step_that_cannot_be_read_hides_nothing_of_the_others(two_steps, vpred_ckpt, failpoint, flip_bit, command):
    """A disk's error on the newer one, and a step that retention gives up while the command runs."""

    def fail(operation, path, detail):
        if operation == "read" and path.parent.name == "step_0000000020":
            raise OSError(5, "Input/output error", str(path))

    failpoint(fail)
    code, out, err = vpred_ckpt(command, two_steps, "--json")
    assert (code, [each["step"] for each in json.loads(out)]) == (2, [10])
    assert err == f"vpred-ckpt: [Errno 5] Input/output error: '{two_steps / 'step_0000000020' / 'MANIFEST.json'}'\n"
    failpoint(None)

    def give_up(operation, path, detail):
        if operation == "read" and path.parent.name == "step_0000000020":
            shutil.rmtree(two_steps / "step_0000000010", ignore_errors=True)

    failpoint(give_up)
    code, out, err = vpred_ckpt(command, two_steps)
    assert (code, out.count("ok step 20")) == (2, 1)
    assert err == f"vpred-ckpt: {two_steps / 'step_0000000010'} was removed while it was read\n"


def test_a_pipe_that_is_closed_is_no_error(two_steps):
    for command in ("inspect", "verify"):
        process = subprocess.Popen(
            [sys.executable, "-m", "checkpoints_mgr", command, two_steps, "--json"],
            cwd=Path(sys.modules["checkpoints_mgr"].__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (128 + signal.SIGPIPE, b"")


def test_ctrl_c_shows_no_traceback(two_steps, vpred_ckpt, failpoint):
    def interrupt(operation, path, detail):
        raise KeyboardInterrupt

    failpoint(interrupt)
    assert vpred_ckpt("verify", two_steps) == (130, "", "")


def rewrite_manifest(path, **changes):
    """A manifest with other values and a right digest: what another program might write."""
    document = json.loads(path.read_text()) | changes
    del document["digest"]
    path.write_bytes(canonical_json(document | {"digest": document_digest(document)}))


def test_a_newer_format_is_refused_not_condemned(two_steps, vpred_ckpt):
    rewrite_manifest(two_steps / "step_0000000020" / "MANIFEST.json", min_reader=2)
    code, _, err = vpred_ckpt("inspect", two_steps)
    assert code == 2
    assert "needs reader version 2, this one is 1" in err


def test_unknown_fields_are_ignored(two_steps, vpred_ckpt):
    rewrite_manifest(two_steps / "step_0000000020" / "MANIFEST.json", metrics={"loss": 0.1})
    assert vpred_ckpt("verify", two_steps)[0] == 0


@pytest.mark.parametrize(
    "piece", [[0, 6, 0, 4096], [0, 7, 99, 4096], [0, 7, 0, 10**9], [0, 7, 0, 8], [1, 7, 0, 4096], [0, 7, -1, 4096]]
)
def test_a_piece_outside_its_file_is_corrupt(two_steps, vpred_ckpt, piece):
    path = two_steps / "step_0000000020" / "MANIFEST.json"
    tensors = json.loads(path.read_text())["tensors"]
    tensors["model/unet.in.bias"]["pieces"] = [piece]
    rewrite_manifest(path, tensors=tensors)
    assert vpred_ckpt("inspect", two_steps)[0] == 1


def test_a_file_name_that_leaves_the_step_is_corrupt(two_steps, vpred_ckpt):
    path = two_steps / "step_0000000020" / "MANIFEST.json"
    files = json.loads(path.read_text())["files"]
    files[0]["name"] = "../step_0000000010/" + files[0]["name"]
    rewrite_manifest(path, files=files)
    assert vpred_ckpt("inspect", two_steps)[0] == 1


def test_the_module_runs_without_mindspore_and_mpi(two_steps):
    script = (
        "import sys, runpy\n"
        "sys.modules['mindspore'] = sys.modules['mpi4py'] = None\n"
        f"sys.argv = ['vpred-ckpt', 'verify', {str(two_steps)!r}]\n"
        "runpy.run_module('checkpoints_mgr', run_name='__main__')\n"
    )
    checkout = Path(sys.modules["checkpoints_mgr"].__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok step") == 2
