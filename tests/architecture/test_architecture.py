"""The rules of the house, read from the source by `ast`."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("checkpoints_mgr", "data", "launcher", "monitoring", "vpred_train")
LEAVES = {"checkpoints_mgr", "data", "monitoring"}
FORBIDDEN = {
    "launcher": {*PACKAGES, "mindspore", "numpy", "mpi4py"} - {"launcher"},
    **{leaf: {*PACKAGES, "mindspore", "mpi4py"} - {leaf} for leaf in LEAVES},
    "vpred_train": {"torch"},
}
TOP_LEVEL = {
    *PACKAGES, "cluster_configs", "tests", "docs", ".ci", "Dockerfile", "README.md", "run_distributed.sh", "LICENSE",
    "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "requirements.lock", "requirements-dev.lock", ".gitignore",
    ".pre-commit-config.yaml", ".dockerignore",
}  # fmt: skip


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Dotted module name and syntax tree of every file of the packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), ast.parse(path.read_text())


def imports(tree: ast.AST) -> set[str]:
    """Dotted names that a tree imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def import_faults(module: str, tree: ast.AST) -> list[str]:
    package = module.split(".")[0]
    faults = [name for name in imports(tree) if name.split(".")[0] in FORBIDDEN[package]]
    if package == "vpred_train":
        of_launcher = {name for name in imports(tree) if name.split(".")[0] == "launcher"}
        faults += [name for name in of_launcher if not name.startswith("launcher.contract")]
    return [f"{module} imports {name}" for name in faults]


def call_faults(module: str, tree: ast.AST) -> list[str]:
    """Names that only one file may use, and names that no file may."""
    only_in = {
        "environ": "launcher.contract.environment",
        "getenv": "launcher.contract.environment",
        "set_context": "vpred_train.runtime",
        "set_device": "vpred_train.runtime",
    }
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr in only_in and module != only_in[node.attr]:
                faults.append(f"{module}:{node.lineno} uses {node.attr}")
            safe = module == "launcher.contract.yaml_dialect"  # its loader is a SafeLoader
            banned = {("sys", "path")} if safe else {("sys", "path"), ("yaml", "load")}
            if isinstance(node.value, ast.Name) and (node.value.id, node.attr) in banned:
                faults.append(f"{module}:{node.lineno} uses {node.value.id}.{node.attr}")
        if isinstance(node, ast.keyword) and node.arg == "shell":
            faults.append(f"{module}: shell=")
        if isinstance(node, ast.Name) and node.id in {"eval", "exec", "pickle"}:
            faults.append(f"{module}:{node.lineno} uses {node.id}")
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


def module_level_imports(tree: ast.Module) -> set[str]:
    return imports(ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []))


def test_imports_go_one_way() -> None:
    assert [fault for module, tree in sources() for fault in import_faults(module, tree)] == []


def test_names_stay_in_their_places() -> None:
    assert [fault for module, tree in sources() for fault in call_faults(module, tree)] == []


def test_no_import_cycles() -> None:
    trees = dict(sources())
    graph = {module: module_level_imports(tree) & set(trees) - {module} for module, tree in trees.items()}
    assert cycle(graph) == []


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("data.x", "import vpred_train.step", "data.x imports vpred_train.step"),
        ("launcher.x", "def f():\n    import numpy as np", "launcher.x imports numpy"),
        ("monitoring.x", "from launcher.contract import files", "monitoring.x imports launcher.contract"),
        ("vpred_train.x", "from launcher.plan import LaunchPlan", "vpred_train.x imports launcher.plan"),
    ],
)
def test_the_import_rule_bites(module: str, text: str, fault: str) -> None:
    assert fault in import_faults(module, ast.parse(text))


@pytest.mark.parametrize(
    "text",
    ["os.environ['A']", "os.getenv('A')", "ms.set_context(mode=0)", "sys.path.append('x')", "yaml.load(x)",
     "run(x, shell=True)", "eval(x)", "pickle.loads(x)"],
)  # fmt: skip
def test_the_name_rule_bites(text: str) -> None:
    assert call_faults("vpred_train.x", ast.parse(text))


def test_the_cycle_rule_bites() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_files_have_telling_names_and_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {Path(name).parts[0] for name in tracked} <= TOP_LEVEL
    assert not [name for name in tracked if Path(name).stem in {"utils", "helpers", "misc", "common"}]


def test_packaging_names_every_package_and_its_commands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(named) == sorted([*PACKAGES, *(f"{package}.*" for package in PACKAGES)])
    for target in project["project"]["scripts"].values():
        module, function = target.split(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_checking_a_recipe_does_not_import_mindspore() -> None:
    program = (
        "import sys, launcher.cli, data.cli, checkpoints_mgr.cli, monitoring, vpred_train.cli, vpred_train.config\n"
        "print([name for name in ('mindspore', 'mpi4py') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
