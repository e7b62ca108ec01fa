"""The rules of the house, read from the source by `ast`."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

import vpred_train
from support import CHECKOUT
from support.source_tree import PACKAGES, module_name, sources
from vpred_train.entry import PROGRAMS

LEAVES = {"checkpoints_mgr", "data", "monitoring"}
FORBIDDEN = {
    "launcher": {*PACKAGES, "mindspore", "numpy", "mpi4py"} - {"launcher"},
    **{leaf: {*PACKAGES, "mindspore", "mpi4py"} - {leaf} for leaf in LEAVES},
    "vpred_train": {"torch"},
}
TOP_LEVEL = {
    *PACKAGES, "cluster_configs", "tests", "docs", ".ci", "Dockerfile", "README.md", "run_distributed.sh", "LICENSE",
    "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "requirements.lock", "requirements-dev.lock", ".gitignore",
    "mkdocs.yml", ".pre-commit-config.yaml", ".dockerignore",
}  # fmt: skip


# The first module of every command, which finds our packages before others of the same name.
ENTRY = "vpred_train.entry"

# What only one module, or those of a tuple, may use; None: nobody may.
OWNERS: dict[str, str | tuple[str, ...] | None] = {
    "os.environ": "launcher.contract.environment",
    "os.environb": "launcher.contract.environment",
    "os.getenv": "launcher.contract.environment",
    "os.putenv": "launcher.contract.environment",
    "mindspore.set_context": "vpred_train.runtime",
    "mindspore.set_device": "vpred_train.runtime",
    "mindspore.communication.init": "vpred_train.runtime",
    "mpi4py": "vpred_train.distributed.collectives",
    "yaml.load": "launcher.contract.yaml_dialect",  # with a SafeLoader, see below
    "yaml.full_load": None,
    "yaml.unsafe_load": None,
    "sys.path": ENTRY,
    "os.system": None,
    "os.popen": None,
    # These make files that nobody else may read, whatever the umask.
    "safetensors.numpy.save_file": "data.sources.columns",
    "tempfile.mkstemp": None,
    **dict.fromkeys(("pickle", "cPickle", "_pickle", "copyreg", "shelve", "marshal", "dill", "cloudpickle", "joblib")),
    # Its pipes and pools pickle: between a process and those that it has started itself, over sockets without a name.
    "multiprocessing": ("data.sources.scan", "data.loading.worker", "data.loading.workers"),
    "concurrent.futures.ProcessPoolExecutor": "data.sources.scan",
    "eval": None,
    "exec": None,
}
# Of mpi4py's communicators, the methods that take objects; those in upper case take buffers.
MPI_PICKLES = {
    "bcast", "gather", "scatter", "allgather", "alltoall", "reduce", "allreduce", "scan", "exscan", "send", "bsend",
    "ssend", "isend", "ibsend", "issend", "recv", "irecv", "sendrecv", "mprobe", "improbe", "iallgather", "iallreduce",
}  # fmt: skip
IMPORTS_MPI = re.compile(r"^\s*(?:from|import) mpi4py", re.MULTILINE)
# Loaders are made of these alone, or of classes above them that are.
SAFE_YAML = {"yaml.SafeLoader", "CSafeLoader", "SafeConstructor"}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names that a tree imports, wherever in it; of a relative import the dots stay."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def import_faults(module: str, tree: ast.AST) -> list[str]:
    package = module.split(".")[0]
    in_contract = f"{module}.".startswith("launcher.contract.")
    faults = []
    for name in sorted(imports(tree)):
        first = name.split(".")[0]
        # The contract is what a trainer may import, so it may not bring in the rest of the launcher.
        beyond = first == "launcher" and (package == "vpred_train" or in_contract)
        # Who runs a package by its name runs the whole installation.
        if f"{name}.".startswith(f"{ENTRY}.") and module.endswith(".__main__"):
            continue
        if not first or first in FORBIDDEN[package] or (beyond and not f"{name}.".startswith("launcher.contract.")):
            faults.append(f"{module} imports {name}")
    return faults


def used_names(tree: ast.AST) -> Iterator[str]:
    """Names and dotted names in use, with those that imports give another name (`import os as o`) spelt out."""
    aliases = {"ms": "mindspore"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
    yield from imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            whole = ast.unparse(node).split(".")
            yield ".".join([aliases.get(whole[0], whole[0]), *whole[1:]])
            if node.attr in {"set_context", "set_device"}:  # by whatever name mindspore goes
                yield f"mindspore.{node.attr}"


def name_faults(module: str, tree: ast.AST) -> list[str]:
    """Names used outside the one module that may use them, and arguments that nobody may give."""
    used = set(used_names(tree))
    faults = [
        f"{module} uses {name}"
        for name, owner in OWNERS.items()
        if module not in (owner if isinstance(owner, tuple) else (owner,))
        and any(f"{each}.".startswith(f"{name}.") for each in used)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
            faults.append(f"{module} passes {node.arg}=")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load":
            safe = set(SAFE_YAML)
            for each in ast.walk(tree):
                if isinstance(each, ast.ClassDef) and each.bases and {ast.unparse(base) for base in each.bases} <= safe:
                    safe.add(each.name)
            if {each.arg: ast.unparse(each.value) for each in node.keywords}.get("Loader") not in safe:
                faults.append(f"{module} loads YAML without a SafeLoader")
    return faults


def opening_faults(module: str, tree: ast.AST) -> list[str]:
    """Images opened without a list of formats: Pillow then tries them all, and starts Ghostscript for PostScript."""
    aliases = {"Image": "PIL.Image"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            aliases |= {alias.asname or alias.name: f"{base}{alias.name}" for alias in node.names}
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            opens = f"{aliases.get(first, first)}{dot}{rest}" == "PIL.Image.open"
            given = {word.arg: word.value for word in node.keywords}.get("formats")
            if opens and (given is None or ast.unparse(given) == "None"):
                faults.append(f"{module} opens an image without formats=")
    return faults


def mpi_faults(module: str, tree: ast.AST) -> list[str]:
    """mpi4py's methods for objects, which pickle, in a file that imports it and in programs that lie in its texts."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    called = [name for text in texts if IMPORTS_MPI.search(text) for name in re.findall(r"\.(\w+)\(", text)]
    if any(name.split(".")[0] == "mpi4py" for name in imports(tree)):
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        called += [function.attr for function in calls if isinstance(function, ast.Attribute)]
    return [f"{module} calls .{name}" for name in called if name in MPI_PICKLES]


def path_faults(tracked: Iterable[str]) -> list[str]:
    """Files at the top level that are not on the list, and files named after nothing."""
    vague = {"utils", "helpers", "misc", "common"}
    return [name for name in tracked if Path(name).parts[0] not in TOP_LEVEL or Path(name).stem in vague]


def script_faults(scripts: dict[str, str], trees: dict[str, ast.Module]) -> list[str]:
    """Console scripts whose function is not there."""
    faults = []
    for script, target in scripts.items():
        module, function = target.split(":")
        body = trees[module].body if module in trees else []
        if function not in {node.name for node in body if isinstance(node, ast.FunctionDef)}:
            faults.append(f"{script}: {target}")
    return faults


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Some cycle of the graph, empty when there is none."""
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for following in sorted(graph.get(module, ())):
            if found := visit(following, [*trail, module]):
                return found
        done.add(module)
        return []

    for module in sorted(graph):
        if found := visit(module, []):
            return found
    return []


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The import statements that run when a module is imported: also those in if, try, with and class bodies."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in ("body", "orelse", "finalbody"):
                yield from at_import(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                yield from at_import(handler.body)


def import_graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> modules it names in imports. `from data import X` is an edge to data.X if that is a module."""
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        edges: set[str] = set()
        for node in at_import(tree.body):
            if isinstance(node, ast.Import):
                edges |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets = {f"{node.module}.{alias.name}" for alias in node.names}
                edges |= {target if target in trees else node.module for target in targets}
        graph[module] = edges & set(trees) - {module}
    return graph


def test_imports_go_one_way() -> None:
    assert [fault for module, tree in sources() for fault in import_faults(module, tree)] == []


def test_names_stay_in_their_places() -> None:
    assert [fault for module, tree in sources() for fault in name_faults(module, tree)] == []


def test_images_are_opened_in_formats_that_are_meant() -> None:
    assert [fault for module, tree in sources() for fault in opening_faults(module, tree)] == []


def test_what_crosses_between_ranks_is_no_pickle() -> None:
    """Also in tests and benchmarks, which others copy from."""
    files = [
        *(path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py")),
        *(CHECKOUT / "tests").rglob("*.py"),
    ]
    trees = {
        module_name(path.relative_to(CHECKOUT)): ast.parse(path.read_text()) for path in files if path != Path(__file__)
    }
    assert {
        "vpred_train.distributed.collectives",
        "launcher.preflight.mpi_trial",
        "tests.support.programs.fake_trainer",
    } <= trees.keys()
    assert [fault for module, tree in trees.items() for fault in mpi_faults(module, tree)] == []


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("from PIL import Image\nwith Image.open(x) as image: pass", 1),
        ("from PIL import Image as I\nI.open(x, formats=None)", 1),
        ("import PIL.Image\nPIL.Image.open(x)", 1),
        ("import PIL.Image as I\nI.open(x)", 1),
        ("def f():\n    from PIL.Image import open\n    open(x)", 1),
        ("from PIL import Image\nImage.open(x, formats=FORMATS)", 0),
        ("open(x)\npath.open()\nwave.open(x)", 0),
    ],
)
def test_the_opening_rule_bites(text: str, faults: int) -> None:
    assert len(opening_faults("data.x", ast.parse(text))) == faults


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("from mpi4py import MPI\nMPI.COMM_WORLD.bcast(1)", ["x calls .bcast"]),
        ("def f():\n    import mpi4py.MPI as m\n    m.COMM_WORLD.allreduce(1, op=m.SUM)", ["x calls .allreduce"]),
        ('RANK = """\nif 1:\n    from mpi4py import MPI\n    c.isend(1)\n"""', ["x calls .isend"]),
        ("from mpi4py import MPI\nMPI.COMM_WORLD.Bcast(b)\nMPI.COMM_WORLD.barrier()", []),
        ("socket.send(b)\npipe.recv()", []),
    ],
)
def test_the_mpi_rule_bites(text: str, faults: list[str]) -> None:
    assert mpi_faults("x", ast.parse(text)) == faults


def test_no_import_cycles() -> None:
    assert cycle(import_graph(dict(sources()))) == []


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("data.x", "import vpred_train.step", "data.x imports vpred_train.step"),
        ("launcher.x", "def f():\n    import numpy as np", "launcher.x imports numpy"),
        ("monitoring.x", "from launcher.contract import files", "monitoring.x imports launcher.contract"),
        ("vpred_train.x", "from launcher.plan import LaunchPlan", "vpred_train.x imports launcher.plan"),
        ("vpred_train.x", "import launcher.contracts", "vpred_train.x imports launcher.contracts"),
        ("launcher.contract.x", "from launcher.plan import LaunchPlan", "launcher.contract.x imports launcher.plan"),
        ("data.x", "try:\n    import mindspore\nexcept ImportError: pass", "data.x imports mindspore"),
        ("data.x", "from ..launcher import cli", "data.x imports ..launcher"),
        ("data.x", "from vpred_train.entry import images", "data.x imports vpred_train.entry"),
        ("data.__main__", "import vpred_train.cli", "data.__main__ imports vpred_train.cli"),
    ],
)
def test_the_import_rule_bites(module: str, text: str, fault: str) -> None:
    assert fault in import_faults(module, ast.parse(text))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("os.environ['A']", "uses os.environ"), ("from os import environ", "uses os.environ"),
        ("import os as o\no.environ", "uses os.environ"), ("os.getenv('A')", "uses os.getenv"),
        ("from os import getenv as g", "uses os.getenv"), ("ms.set_context(mode=0)", "uses mindspore.set_context"),
        ("context.set_context(mode=0)", "uses mindspore.set_context"),
        ("from mindspore import set_device", "uses mindspore.set_device"),
        ("ms.communication.init()", "uses mindspore.communication.init"),
        ("def f():\n    from mpi4py import MPI", "uses mpi4py"), ("sys.path.append('x')", "uses sys.path"),
        ("from sys import path", "uses sys.path"), ("pickle.loads(x)", "uses pickle"),
        ("from pickle import loads", "uses pickle"), ("import marshal", "uses marshal"),
        ("from multiprocessing import Queue", "uses multiprocessing"),
        ("np.load(x, allow_pickle=y)", "passes allow_pickle="),
        ("from concurrent.futures import ProcessPoolExecutor", "uses concurrent.futures.ProcessPoolExecutor"),
        ("eval(x)", "uses eval"), ("os.system(x)", "uses os.system"),
        ("run(x, shell=True)", "passes shell="), ("yaml.load(x, Loader=yaml.SafeLoader)", "uses yaml.load"),
        ("yaml.unsafe_load(x)", "uses yaml.unsafe_load"),
    ],
)  # fmt: skip
def test_the_name_rule_bites(text: str, fault: str) -> None:
    assert f"vpred_train.x {fault}" in name_faults("vpred_train.x", ast.parse(text))


def test_the_name_rule_spares_what_only_looks_alike() -> None:
    text = "import os.path\nos.path.join(a)\nast.literal_eval(x)\nmodel.eval()\nPROBE = 'from mpi4py import MPI'"
    assert name_faults("launcher.x", ast.parse(text)) == []


@pytest.mark.parametrize(
    ("above", "bases", "faults"),
    [
        ("SafeConstructor", "yaml.SafeLoader", 0),
        ("SafeConstructor", "yaml.Loader", 1),
        ("SafeConstructor", "A, CSafeLoader", 0),
        ("SafeConstructor", "A, CLoader", 1),
        ("FullConstructor", "A, CSafeLoader", 1),
    ],
)
def test_even_the_owner_of_yaml_load_needs_a_safe_loader(above: str, bases: str, faults: int) -> None:
    text = f"class A({above}): pass\nclass L({bases}): pass\nyaml.load(x, Loader=L)"
    assert len(name_faults("launcher.contract.yaml_dialect", ast.parse(text))) == faults


def test_the_cycle_rule_bites() -> None:
    texts = {
        "a": "from a.x import X",  # a/__init__.py
        "a.x": "if True:\n    import b",
        "b": "def later():\n    import a.y\nfrom a import X",
        "a.y": "from a import x",
    }
    graph = import_graph({module: ast.parse(text) for module, text in texts.items()})
    assert cycle(graph) == ["a", "a.x", "b", "a"]
    assert cycle(graph | {"b": set()}) == []


def test_files_have_telling_names_and_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert "pyproject.toml" in tracked
    assert path_faults(tracked.rstrip("\0").split("\0")) == []


def test_the_path_rule_bites() -> None:
    bad = ["data/utils.py", "src/a.py", "notes.txt"]
    assert path_faults(["data/order.py", *bad]) == bad


def test_every_command_begins_with_the_entry_module() -> None:
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {target.split(":")[0] for target in scripts.values()} == {ENTRY}
    entry, trees = dict(sources())[ENTRY], dict(sources())
    started = set(PROGRAMS)
    for node in ast.walk(entry):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_run" and isinstance(node.args[0], ast.Constant):
            started.add(str(node.args[0].value))
    assert len(started) > len(PROGRAMS)
    assert script_faults({module: f"{module}:main" for module in started}, trees) == []


def test_the_entry_module_loads_none_of_ours_by_itself() -> None:
    assert {name for name in imports_at_import(ENTRY) if name.split(".")[0] in PACKAGES} == set()
    for module in ("vpred_train.__main__", "vpred_train.train_text_to_image", "vpred_train.text_to_image"):
        assert {name for name in imports_at_import(module) if name.split(".")[0] in PACKAGES} <= {
            ENTRY,
            *(f"{ENTRY}.{name}" for name in ("train", "text_to_image")),
        }


def imports_at_import(module: str) -> set[str]:
    tree = dict(sources())[module]
    return imports(ast.Module(list(at_import(tree.body)), []))


def test_packaging_names_every_package_and_its_commands() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    named = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(named) == sorted([*PACKAGES, *(f"{package}.*" for package in PACKAGES)])
    assert set(PACKAGES) == {path.parent.name for path in CHECKOUT.glob("*/__init__.py")}
    assert script_faults(project["project"]["scripts"], dict(sources())) == []


def test_the_script_rule_bites() -> None:
    trees = {"a.cli": ast.parse("def main(): pass")}
    scripts = {"good": "a.cli:main", "no-function": "a.cli:run", "no-module": "b.cli:main"}
    assert script_faults(scripts, trees) == ["no-function: a.cli:run", "no-module: b.cli:main"]


def loaded(modules: str, watched: tuple[str, ...]) -> list[str]:
    """Which of `watched` a fresh interpreter has loaded after importing `modules`."""
    program = f"import sys, {modules}\nprint(*[name for name in {watched!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return answer.stdout.split()


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("launcher.cli, launcher.rank.shim", ("mindspore", "mpi4py", "numpy", *set(PACKAGES) - {"launcher"})),
        ("launcher.rank.shim", ("pydantic",)),
        ("data.commands.cli", ("mindspore", "mpi4py", *set(PACKAGES) - {"data"})),
        ("checkpoints_mgr.cli", ("mindspore", "mpi4py", *set(PACKAGES) - {"checkpoints_mgr"})),
        ("monitoring", ("mindspore", "mpi4py", *set(PACKAGES) - {"monitoring"})),
        ("vpred_train", ("mindspore", "mpi4py", "numpy", "pydantic", *set(PACKAGES) - {"vpred_train"})),
        ("vpred_train.entry", ("mindspore", "mpi4py", "numpy", "pydantic", *set(PACKAGES) - {"vpred_train"})),
        ("vpred_train.config.train, vpred_train.commands.train", ("mindspore", "mpi4py")),
        ("vpred_train.commands.weights", ("mindspore", "mpi4py", "torch")),
        ("vpred_train.commands.ema, vpred_train.commands.checkpoint", ("mindspore", "mpi4py", "torch")),
    ],
)
def test_what_an_import_does_not_bring_in(modules: str, absent: tuple[str, ...]) -> None:
    assert loaded(modules, absent) == []


def test_the_front_names_what_is_there() -> None:
    """Each name of `vpred_train` is found, is what its import for type checkers says, and brings in no MindSpore but
    for TextToImage."""
    typed = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(dict(sources())["vpred_train"])
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vpred_train.")
        for alias in node.names
    }
    assert set(typed) == set(vpred_train.__all__) <= set(dir(vpred_train))
    light = [name for name in vpred_train.__all__ if name != "TextToImage"]
    program = f"import sys, vpred_train as v\nprint(*[v.{', v.'.join(light)}], 'mindspore' in sys.modules)"
    answer = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("False\n")
    for name in light:
        module, _, attribute = typed[name].rpartition(".")
        assert getattr(vpred_train, name) is getattr(import_module(module), attribute)
    with pytest.raises(AttributeError, match="'vpred_train' has no attribute 'Trainer'"):
        _ = vpred_train.Trainer


def test_the_loading_rule_bites() -> None:
    assert loaded("data.commands.cli", ("numpy", "mindspore")) == ["numpy"]
