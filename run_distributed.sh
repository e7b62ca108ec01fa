#!/usr/bin/env bash
# Train: ./run_distributed.sh [--cluster FILE] [--recipe FILE] [--run-dir DIR] [section.key=value ...]
# Other commands: ./run_distributed.sh plan | check | status ...  (`.venv/bin/vpred-launch --help` lists them)
# The first start makes .venv beside this file from requirements.lock; later starts find it ready.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
venv="$here/.venv"
stamp="$venv/.set-up-for"
wanted="$(cat -- "$here/requirements.lock" "$here/pyproject.toml" "$here"/vpred_train/kernels/{requirements.lock,operations.cpp} \
    | sha256sum) $here"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'run_distributed.sh: %s\n' "$*" >&2; }

# Python makes no virtual environment where a colon is, and pip's commands do not start where a shell would look closer.
if [[ "$here" == *[:\"\$\`\\$'\n']* ]]; then
    say "move the checkout: no virtual environment works in a path with : \" \$ \` \\ or a line break ($here)"
    exit 2
fi

is_ready() { [[ -x "$venv/bin/vpred-launch" && -f "$stamp" && "$(<"$stamp")" == "$wanted" ]]; }

# The first Python 3.12 or 3.11 on PATH that can make a virtual environment with pip in it.
make_venv() {
    local python suitable=""
    for python in python3.12 python3.11 python3 python; do
        "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null || continue
        suitable="$python"
        rm -rf -- "$venv"
        if "$python" -m venv "$venv" >/dev/null 2>&1; then return; fi
        rm -rf -- "$venv"
        # Debian without python3-venv: its pip, where there is one, can fill an environment from outside.
        if "$python" -m venv --without-pip "$venv" 2>/dev/null \
            && "$python" -m pip --python "$venv/bin/python" install pip >&2 2>/dev/null; then return; fi
        rm -rf -- "$venv"
    done
    if [[ -n "$suitable" ]]; then
        say "$suitable cannot make a virtual environment in $here; on Debian and Ubuntu: apt-get install python3-venv"
    else
        say "found no Python 3.11 or 3.12 on PATH (MindSpore 2.10 has no wheel for others); install one"
    fi
    exit 2
}

# In a subshell, so that the lock (on the checkout's own directory: no file is left) ends with it.
set_up() (
    # pip and venv must not take a `logging.py` beside us, or on PYTHONPATH, for Python's.
    export PYTHONSAFEPATH=1
    unset PYTHONPATH PYTHONHOME
    exec 9<"$here"
    if command -v flock >/dev/null; then flock 9; fi
    if is_ready; then exit 0; fi
    say "setting up $venv (once; downloads MindSpore, which takes minutes)"
    # Without its stamp an environment is the remains of a set-up that did not finish.
    if [[ ! -f "$stamp" ]] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then make_venv; fi
    rm -f -- "$stamp"
    if ! { "$venv/bin/python" -m pip install --require-hashes -r "$here/requirements.lock" \
        && "$venv/bin/python" -m pip install --no-deps -e "$here"; } >&2; then
        say "set-up failed (see above); the next start tries again"
        exit 1
    fi
    # Without a compiler, or on another processor than x86-64 (no headers on PyPI), MindSpore has to do alone.
    { "$venv/bin/python" -m pip install --no-deps --require-hashes -r "$here/vpred_train/kernels/requirements.lock" \
        && "$venv/bin/python" -m vpred_train.kernels.library; } >&2 || say "going on without compiled operations"
    printf '%s\n' "$wanted" >"$stamp.new"
    mv -- "$stamp.new" "$stamp"
)

if ! is_ready; then set_up; fi

# A first word without "=" and without a leading "-" is a command of vpred-launch.
case "${1:--}" in
    -* | *=*) exec "$venv/bin/vpred-launch" run "$@" ;;
    *) exec "$venv/bin/vpred-launch" "$@" ;;
esac
