"""Every command in README.md and docs/ is run, or its block says why not. Each page is run in a folder of its own."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.config import ClusterConfig
from launcher.contract import yaml_dialect
from launcher.contract.config import build_document
from launcher.planning.mpirun import ROOT_VARIABLES
from support.jobs import free_ports
from support.pages import DOCUMENTED, Block, blocks, faults, name
from support.stand_ins import DEADLINE_S, STAND_INS, checkout
from vpred_train.config.train import TrainConfig

# What a part of a document in a page is checked with.
LEAST = {
    TrainConfig: "{total_samples: 64, global_batch: 8, data: {path: x, resolution: 64}, pretrained: {path: x}, "
    "optimizer: {learning_rate: 1e-4}, checkpoint: {every_samples: 8}}",
    ClusterConfig: "{name: x, accelerator: cpu, workers_per_host: 1, metrics: {address: 0.0.0.0}, "
    "hosts: [{address: 10.0.0.1}, {address: 10.0.0.2}]}",
}
FOREIGN = {"scrape_configs"}  # Prometheus' own


def environment() -> dict[str, str]:
    """Two ranks on any number of cores, also as root."""
    env = os.environ | {"PRTE_MCA_rmaps_default_mapping_policy": ":OVERSUBSCRIBE"}
    return env | (ROOT_VARIABLES if os.geteuid() == 0 else {})


def run_page(page: list[Block], folder: Path) -> int:
    """Run a page's blocks in order; returns how many commands' blocks there were. A failure is an AssertionError."""
    checkout(folder)
    ran, made, printed = 0, set[str](), ""
    for block in page:
        for stand_in in block.marks.get("setup", "").split():
            if stand_in not in made:
                made.add(stand_in)
                STAND_INS[stand_in](folder)
        if "file" in block.marks:
            (folder / block.marks["file"]).write_text(block.text)
        if "output" in block.marks:
            expected = ".*".join(re.escape(line) for line in block.text.strip().split("\n...") if line)
            assert re.search(expected, printed, re.S), f"{block}: other than what is printed:\n{printed}"
        if not block.is_run:
            continue
        answer = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.script(free_ports(2))],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        code = int(block.marks.get("exit code", "0").split()[0])
        assert answer.returncode == code, f"{block}: exit code {answer.returncode}\n{answer.stdout}\n{answer.stderr}"
        printed = answer.stdout
        ran += 1
    return ran


def test_every_block_is_run_or_says_why() -> None:
    assert [fault for page in DOCUMENTED for block in blocks(page) for fault in faults(block)] == []


@pytest.mark.parametrize("page", [page for page in DOCUMENTED if any(each.is_run for each in blocks(page))], ids=name)
def test_the_commands_of_a_page(page: Path, tmp_path: Path) -> None:
    assert run_page(blocks(page), tmp_path) > 0


def parts() -> Iterator[Block]:
    for page in DOCUMENTED:
        yield from (block for block in blocks(page) if block.language == "yaml")


@pytest.mark.parametrize("block", list(parts()), ids=str)
def test_yaml_is_a_document_or_a_part_of_one(block: Block) -> None:
    given: dict[str, Any] = yaml_dialect.parse(block.text)
    if given.keys() <= FOREIGN:
        return
    model = TrainConfig if given.keys() <= TrainConfig.model_fields.keys() else ClusterConfig
    least = yaml_dialect.parse(LEAST[model])
    if "submit" in given:
        del least["hosts"]  # a job's allocation declares them
    build_document(model, least | given, block.page)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```\nls\n```\n", "its language is ''"),
        ("<!-- not run -->\n```bash\nls\n```\n", "gives no reason"),
        ("<!-- not run: NPU -->\n```bash\nls\n```\n", "gives no reason"),
        ("<!-- run by: docs/quickstart.md -->\n```bash\nls\n```\n", "'ls' is not run by docs/quickstart.md"),
        ("<!-- not run: needs an NPU -->\n\n```sh\nls\n```\n", "its language is 'sh'"),
        ("<!-- skip: needs an NPU -->\n```bash\nls\n```\n", "unknown mark 'skip'"),
    ],
)
def test_a_block_that_is_neither_run_nor_marked_is_a_fault(text: str, fault: str) -> None:
    (block,) = blocks(Path("page.md"), text)
    assert any(fault in each for each in faults(block))


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nfalse\ntrue\n```\n",
        "```bash\nfalse | true\n```\n",
        "```bash\n.venv/bin/vpred-launch no-such-command\n```\n",
        "<!-- exit code: 2 -->\n```bash\ntrue\n```\n",
        "```bash\necho one\n```\n\n<!-- output -->\n```text\ntwo\n```\n",
        "<!-- run with: --no-such-option -->\n```bash\n./run_distributed.sh schema   # a comment\n```\n",
    ],
)
def test_a_command_that_fails_or_prints_other_things_is_a_fault(text: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run_page(blocks(Path("page.md"), text), tmp_path)
