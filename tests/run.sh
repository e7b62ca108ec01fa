#!/usr/bin/env bash
# All checks: format, lint, types, tests. Sets up what it needs in .venv. Arguments go to pytest.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
./run_distributed.sh schema >/dev/null

python="$PWD/.venv/bin/python"
stamp="$PWD/.venv/.tests-set-up-for"
wanted="$(sha256sum <requirements-dev.lock)"
if [[ "$(cat -- "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
    printf '%s\n' "$wanted" >"$stamp"
fi

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
"$python" -m pytest "$@"
