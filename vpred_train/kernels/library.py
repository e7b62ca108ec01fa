"""Builds the library of compiled operations and loads it where the accelerator uses it.

It is built once on each machine for the machine's own processor. A container image has one for any x86-64-v3 instead,
since the image is built on one machine and runs on others.
"""

import argparse
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

BUILD_COMMAND = "python -m vpred_train.kernels.library"
SOURCE = Path(__file__).with_name("operations.cpp")
COMPILERS = ("g++", "c++", "clang++")
# Sums may be reordered, so that they vectorise. Infinities and NaN keep their meaning.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-Wall", "-Wextra"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
PORTABLE_FLAGS = tuple(flag.replace("native", "x86-64-v3") for flag in FLAGS)
# The x86-64 psABI's level 3 beyond level 2, by the names of /proc/cpuinfo (abm is LZCNT, xsave OSXSAVE).
X86_64_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})

_loaded: Path | None = None
_updates = True


class BuildError(Exception):
    """Reports why the operations cannot be compiled here."""


def library_path() -> Path:
    """Return the path of the library for this source, this MindSpore and this processor; it may not exist yet."""
    return _path(FLAGS, _processor())


def portable_path() -> Path:
    """Return the path of the library for this source, this MindSpore and any x86-64-v3 processor."""
    return _path(PORTABLE_FLAGS, "x86-64-v3")


def _path(flags: tuple[str, ...], processor: str) -> Path:
    digest = hashlib.sha256(SOURCE.read_bytes())
    digest.update(repr((flags, _onednn().stat().st_size, processor)).encode())
    return Path(sys.prefix) / "lib" / "vpred" / f"operations-{digest.hexdigest()[:16]}.so"


def build(*, portable: bool = False) -> Path:
    """Compile the operations unless the library exists; return its path.

    portable: for any x86-64-v3 processor, not for this one

    Raises BuildError: when the compiler, the oneDNN headers or MindSpore is missing, or the compiler fails.
    """
    path, flags = (portable_path(), PORTABLE_FLAGS) if portable else (library_path(), FLAGS)
    if path.exists():
        return path
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"found no C++ compiler on PATH ({', '.join(COMPILERS)}); on Debian: apt-get install g++")
    include = Path(sys.prefix) / "include"
    if not (include / "oneapi/dnnl/dnnl.hpp").exists():
        raise BuildError(
            f"{include} has no oneDNN headers; pip install --no-deps -r {SOURCE.with_name('requirements.lock')}"
        )
    onednn = _onednn()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    command: list[str | Path] = [
        compiler,
        *flags,
        "-I",
        include,
        SOURCE,
        "-o",
        fresh,
        onednn,
        f"-Wl,-rpath,{onednn.parent}",
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"{compiler} failed:\n{result.stderr}")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def load(threads: int) -> bool:
    """Use the library from now on with `threads` threads, if there is one; return whether it is in use.

    The library for this processor comes before the portable one.
    Raises RuntimeError: when the threads cannot be started.
    """
    global _loaded
    path = library_path()
    if not path.exists() and _processor_flags() >= X86_64_V3:
        path = portable_path()
    if path.exists():
        if ctypes.CDLL(str(path)).vpred_use_threads(threads) != 0:
            raise RuntimeError(f"{path}: cannot start {threads} threads")
        _loaded = path
    return _loaded is not None


def loaded() -> Path | None:
    """Return the library in use; None when the networks use MindSpore's own operations."""
    return _loaded


def use_for_updates(yes: bool) -> None:
    """Set whether the optimiser and the moving averages use the library too."""
    global _updates
    _updates = yes


def for_updates() -> Path | None:
    """Return the library that the optimiser and the moving averages use; None when they use numpy."""
    return _loaded if _updates else None


def _onednn() -> Path:
    # MindSpore is not imported: it reads the environment at import, and a build does not set that up.
    spec = importlib.util.find_spec("mindspore")
    if spec is None or spec.origin is None:
        raise BuildError("MindSpore is not installed")
    return Path(spec.origin).with_name("lib") / "libdnnl.so.3"


def _processor() -> str:
    """Return the processor's instruction sets, as far as the system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _processor_flags() -> frozenset[str]:
    return frozenset(_processor().partition(":")[2].split())


def main() -> int:
    """Build and report the outcome; return 1 when the networks will use MindSpore's own operations."""
    parser = argparse.ArgumentParser(prog=BUILD_COMMAND, description=__doc__, allow_abbrev=False)
    parser.add_argument("--portable", action="store_true", help="for any x86-64-v3 processor, as in a container image")
    options = parser.parse_args()
    try:
        print(f"compiled operations: {build(portable=options.portable)}")
    except BuildError as error:
        print(f"compiled operations left out, MindSpore's own are slower: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
