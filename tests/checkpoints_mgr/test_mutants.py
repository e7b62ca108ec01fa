"""The tests bite: with one safeguard taken out of the package, the test of it fails, in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import PYTHONPATH

HERE = Path(__file__).parent
CAUGHT_BY = {
    "no_tile_check": ("restore/test_shards.py", "do_not_make_up_the_tensor"),
    "no_digest_check": ("test_faults.py", "flipped_bit and ema and last"),
    "no_size_check": ("test_faults.py", "another_size and long and model"),
    "no_vote": ("test_manager.py", "ranks_that_disagree"),
    "no_vote_on_what_was_written": ("test_faults.py", "one_rank_that_cannot_write and fsync and 1"),
    "no_blame": ("test_votes.py", "failed_save and ENOSPC"),
    "no_lease": ("disk/test_leases.py", "each_kind_of_reader and restore"),
    "no_second_look": ("test_faults.py", "alone_reads_wrong_bytes"),
    "no_owner": ("test_policy.py", "only_what_dead"),
    "trust_in_names": ("save/test_retention.py", "one_damaged_step and empty and directory and False"),
    "trust_in_the_memory": ("save/test_retention.py", "one_damaged_step and flipped and byte and 50 and False"),
    "no_other_nodes": ("test_nodes.py", "a_part_is_damaged"),
    "no_copy": ("save/test_background.py", "what_changes_after_the_call"),
}


@pytest.mark.parametrize("mutant", CAUGHT_BY)
def test_a_safeguard_that_is_missing_is_noticed(mutant):
    file, words = CAUGHT_BY[mutant]
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", words, str(HERE / file)]
    env = os.environ | {"PYTHONPATH": PYTHONPATH}

    def run(*options):
        return subprocess.run([*argv, *options], env=env, capture_output=True, text=True, timeout=120)

    broken = run("-p", "support.checkpoints.mutants", "--mutant", mutant)
    assert broken.returncode == pytest.ExitCode.TESTS_FAILED, broken.stdout
