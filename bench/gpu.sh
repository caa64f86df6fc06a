#!/usr/bin/env bash
# The GPU tests and all GPU comparisons, in one call of under ten minutes, on a bare machine.
#
#     bench/gpu.sh [--wheels DIR] [OPTION OF gpu.py ...]
#
# Wants a Python with torch and transformers (PYTHON, default python3). What else quantkit needs
# and is not there comes from DIR, a folder of wheels that was carried along; nothing is
# downloaded. quantkit itself is not installed: the checkout runs as it lies, with a note beside
# it that tells importlib its version. Without a GPU: bench/gpu.sh --device cpu --model tiny
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
python=${PYTHON:-python3}

wheels=
if [ "${1:-}" = --wheels ]; then
    wheels=$(cd "$2" && pwd)
    shift 2
fi

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "$wheels" ]; then
    # --no-deps: they would pull in another torch than the machine's
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
fi
if ! (cd / && "$python" -c "import importlib.metadata as m; m.version('quantkit')") 2>/dev/null; then
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
    mkdir "$site/quantkit-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: quantkit\nVersion: %s\n' "$version" \
        > "$site/quantkit-$version.dist-info/METADATA"
fi

export PYTHONPATH="$root:$site${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" - <<'PY'
import importlib.util, sys
need = ("torch", "transformers", "bitsandbytes", "accelerate", "blake3", "ml_dtypes", "numba",
        "pydantic", "psutil",
        "jinja2", "sentencepiece", "google.protobuf", "tokenizers", "typer", "rich", "yaml",
        "matplotlib", "pytest", "xdist")
def absent(name):
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True
missing = [name for name in need if absent(name)]
if missing:
    sys.exit(f"missing here: {', '.join(missing)}; carry their wheels and name the folder: --wheels DIR")
PY
"$python" "$here/gpu.py" "$@"
