"""The rooms of each package and the order of their floors: who may import whom, also within functions."""

import ast
from collections import Counter

import pytest

from support import CHECKOUT, TESTS
from support.source_tree import PACKAGES, module_name, sources

# Each floor may import those below it. Rooms on one floor do not know each other.
FLOORS: dict[str, list[set[str]]] = {
    "launcher": [
        {"cli"},
        {"doctor", "pods"},
        {"run"},
        {"commands", "preflight", "supervision"},
        {"submit"},
        {"planning"},
        {"rank", "ranktable"},
        {"processes"},
        {"cluster", "records"},
        {"contract"},
    ],
    "vpred_train": [
        {"__main__", "text_to_image", "train_text_to_image"},
        {"entry"},
        {"commands"},
        {"doctor"},
        {"training"},
        {"training.periodic"},
        {"training.hooks"},
        {"engine.engines"},
        {"engine.device", "engine.host"},
        {"engine", "latent_cache", "sampling", "evaluation.networks"},
        {"models", "prepare"},
        {"weights", "ema", "estimates", "optim"},
        {"evaluation"},
        {"distributed", "weights.lora"},
        {"weights.layouts", "diffusion.samplers", "runtime"},
        {"diffusion", "kernels"},
        {"config", "text", "weights.formats"},
        {"arrays", "errors", "foreign", "host_copies"},
    ],
    "data": [
        {"commands"},
        {"cache"},
        {"loading"},
        {"order"},
        {"sources"},
        {"images"},
        {"config", "keyed_random", "files"},
        {"errors"},
    ],
    "checkpoints_mgr": [
        {"__main__", "cli"},
        {"manager", "step_report"},
        {"save", "restore"},
        {"alike"},
        {"votes"},
        {"disk"},
        {"state", "policy", "nodes", "communicator"},
        {"errors"},
    ],
}
MAX_MODULES = 16  # in one folder


def room_of(module: str) -> str | None:
    """weights.formats of vpred_train.weights.formats.containers; None of a package itself, its face."""
    package, _, rest = module.partition(".")
    rooms = {room for floor in FLOORS[package] for room in floor}
    return max((room for room in rooms if f"{rest}.".startswith(f"{room}.")), key=len, default=None)


def imported_modules(tree: ast.AST, modules: set[str]) -> set[str]:
    """Modules of ours that a tree imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & modules


def room_faults(module: str, tree: ast.AST, modules: set[str]) -> list[str]:
    """Imports of the module's package that do not go down."""
    package = module.split(".")[0]
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    here, faults = room_of(module), []
    for name in sorted(imported_modules(tree, modules)):
        if name.split(".")[0] != package or here is None:
            continue
        there = room_of(name)
        if there is None or (there != here and floor[there] <= floor[here]):
            faults.append(f"{module} ({here}) imports {name} ({there})")
    return faults


def trees() -> dict[str, ast.Module]:
    return {module: tree for module, tree in sources() if module.split(".")[0] in FLOORS}


def test_every_module_has_a_room() -> None:
    assert [module for module in trees() if "." in module and room_of(module) is None] == []


def test_rooms_import_downwards_alone() -> None:
    found = trees()
    assert [fault for module, tree in found.items() for fault in room_faults(module, tree, found.keys())] == []


@pytest.mark.parametrize(
    ("module", "text", "faults"),
    [
        ("vpred_train.weights.formats.x", "from vpred_train.config.train import TrainConfig", 1),
        ("vpred_train.weights.formats.x", "def f():\n    from vpred_train.config import train", 1),
        ("vpred_train.engine.x", "import vpred_train.latent_cache.plan", 1),
        ("launcher.rank.x", "if True:\n    from launcher.planning.plan import LaunchPlan", 1),
        ("data.sources.x", "import data", 1),
        ("data.sources.x", "from data.errors import DataError\nimport data.images.decode\nimport numpy", 0),
        ("vpred_train.training.x", "from vpred_train.training.hooks.hook import Hook", 0),
        ("vpred_train", "from vpred_train.sampling.pipeline import TextToImage", 0),
        ("vpred_train.sampling.x", "from vpred_train import TextToImage", 1),
        ("vpred_train.training.hooks.x", "from vpred_train.training.trainer import Trainer", 1),
    ],
)
def test_the_rule_of_rooms_bites(module: str, text: str, faults: int) -> None:
    assert len(room_faults(module, ast.parse(text), trees().keys())) == faults


def test_no_folder_is_crowded() -> None:
    folders = Counter(path.parent for package in (*FLOORS, "monitoring") for path in (CHECKOUT / package).rglob("*.py"))
    assert {str(folder): count for folder, count in folders.items() if count - 1 > MAX_MODULES} == {}


def test_names_of_modules_follow_paths() -> None:
    assert {module_name(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "data").rglob("*.py")} <= trees().keys()


def test_a_test_file_lies_in_the_folder_of_its_room() -> None:
    files = (path.relative_to(TESTS) for package in PACKAGES for path in (TESTS / package).rglob("test_*.py"))
    assert [str(path) for path in files if not (CHECKOUT / path.parent / "__init__.py").exists()] == []
