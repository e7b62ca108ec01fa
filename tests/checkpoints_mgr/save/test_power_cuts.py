"""Power cuts: on every image of the disk that a cut during a save allows, a restore finds the old or the new step."""

import random
import shutil

import pytest

from checkpoints_mgr import CheckpointManager, Retention
from support.checkpoints.crash_images import DATA, Recorder, choices, image, load, open_changes, replay, write


@pytest.fixture
def recorded(tmp_path, make_state, failpoint):
    """(root before a save of step 30 that also retires step 10, the operations of that save)."""
    root, recorder = tmp_path / "disk" / "root", Recorder()
    root.parent.mkdir()
    for step in (10, 20):
        CheckpointManager(root, retention=Retention(2)).save(step, make_state(step // 10))
    shutil.copytree(root, tmp_path / "before")
    failpoint(recorder)
    CheckpointManager(root, retention=Retention(2)).save(30, make_state(3))
    failpoint(None)
    return root, tmp_path / "before", recorder.log


def images(root, before, log, forget):
    """(number of operations done, image), each image once. forget: an operation that is never carried out."""
    chance, seen = random.Random(0), set()  # noqa: S311 the same images each time
    log = [each for each in log if each[0] != forget]
    for count in reversed(range(len(log) + 1)):
        tree = load(before)
        replay(tree, root, log[:count])
        for happened in choices(open_changes(tree), chance):
            for data in DATA:
                found = image(tree, happened, data)
                key = (count == len(log), repr(found))
                if key not in seen:
                    seen.add(key)
                    yield key[0], found


def fault_of_image(found, returned, path, make_state, restore, assert_same):
    """What is wrong with what a restore makes of it; empty when nothing is. returned: the save had ended well."""
    write(found, path)
    restored = restore(path)
    step, quarantined = (restored.step, restored.quarantined) if restored is not None else (None, ())
    shutil.rmtree(path)
    if quarantined:
        return f"steps {quarantined} were visible but not whole"
    if step not in ((30,) if returned else (20, 30)):
        return f"step {step} was restored"
    assert_same(restored.state, make_state(step // 10))
    return ""


def test_after_a_power_cut_there_is_the_old_or_the_new_step(tmp_path, recorded, make_state, restore, assert_same):
    count = 0
    for returned, found in images(*recorded, forget=None):
        count += 1
        assert fault_of_image(found, returned, tmp_path / "image", make_state, restore, assert_same) == ""
    print(f"{count} images")
    assert count > 150


@pytest.mark.parametrize(
    ("forget", "fault"),
    [("sync_dir", "step 20 was restored"), ("sync_dir", "visible but not whole"), ("fsync", "visible but not whole")],
)
def test_a_save_that_forgets_to_flush_is_found_out(tmp_path, recorded, make_state, restore, assert_same, forget, fault):
    """Mutants: the images bite."""
    for returned, found in images(*recorded, forget=forget):
        if fault in fault_of_image(found, returned, tmp_path / "image", make_state, restore, assert_same):
            return
    pytest.fail(f"nothing noticed that {forget} is missing")
