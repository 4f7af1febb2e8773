#!/bin/sh
# Measure text2seg on a CUDA machine without network.
#
#   scripts/bench_gpu.sh prepare WHEELS               with network: put what `run` installs into the folder WHEELS
#   scripts/bench_gpu.sh run WHEELS RESULTS           on the GPU machine: install, test, measure; under ten minutes
#   scripts/bench_gpu.sh run WHEELS RESULTS --quick   the same with the demo model and small images, on any machine
#
# The GPU machine has Python with venv, torch 2.11 or newer and its torchvision; these are not carried along, because
# they are built for its driver. What it has already is not installed again. PYTHON names the Python, and where that of
# the GPU machine is another one than here, PIP_ARGS of `prepare` says so:
#   PIP_ARGS="--python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64"
set -eu

python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" >&2
    exit 2
}

prepare() { # WHEELS
    mkdir -p "$1"
    # These two are published as source only; they hold no machine code, so it does not matter where they are built.
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$1" "$here" openai-clip segment-anything
    # All that text2seg needs but torch, which `pip download` would fetch by the gigabyte.
    # shellcheck disable=SC2086  # PIP_ARGS is a list
    "$python" -m pip download --quiet --no-deps --only-binary=:all: ${PIP_ARGS:-} --dest "$1" \
        annotated-types contourpy cycler docstring-parser filelock fonttools ftfy jinja2 kiwisolver markdown-it-py \
        markupsafe matplotlib mdurl numpy opencv-python-headless packaging pillow platformdirs pycocotools pydantic \
        pygments pyparsing python-dateutil regex rich ruamel.yaml safetensors 'setuptools<82' six tqdm typeguard \
        typing-extensions typing-inspection tyro wcwidth pytest hypothesis iniconfig pluggy sortedcontainers
    # pydantic wants one version of its core and no other.
    core=$(unzip -p "$1"/pydantic-[0-9]*.whl '*/METADATA' | sed -n 's/^Requires-Dist: \(pydantic-core==[^;]*\).*/\1/p')
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --no-deps --only-binary=:all: ${PIP_ARGS:-} --dest "$1" "$core"
    du -sh "$1"
}

run() { # WHEELS RESULTS [--quick]
    mkdir -p "$2"
    results=$(cd "$2" && pwd)
    made=$(mktemp -d)
    trap 'rm -rf "$made"' EXIT
    # An environment of our own that sees all packages of the given one, which may be an environment itself.
    "$python" -m venv "$made/venv"
    folder=$("$made/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' >"$folder/given.pth"
    python=$made/venv/bin/python
    if ls "$1"/*.whl >/dev/null 2>&1; then
        "$python" -m pip install --quiet --no-index --find-links "$1" text2seg pytest hypothesis
    fi
    export PYTHONPATH="$here" TEXT2SEG_TEXT_CACHE=off
    cd "$here"
    "$python" -c 'import torch as t; print(t.__version__, t.cuda.get_device_name() if t.cuda.is_available() else "CPU")'
    if [ "${3:-}" = --quick ]; then
        bench quick --quick
        "$python" scripts/benchmark_scaling.py --quick --output "$results/scaling"
        return
    fi
    "$python" -m pytest -q tests/test_encoder.py
    all="stock stock-half stock-fused stock-compiled ours ours-compiled"
    for model in vit_b vit_h; do
        # shellcheck disable=SC2086  # a list
        bench $model --models $model --flows $all --images 8 --batch 8 --minutes 0.75
    done
    bench words --models vit_b --queries 1 80 --flows stock-half ours --images 4 --batch 4 --minutes 0.75
    bench sizes --models vit_b --sizes 1080p 12mp --flows stock-half ours --images 4 --batch 4 --minutes 0.75
    "$python" scripts/benchmark_scaling.py --most-images 1000 --output "$results/scaling"
}

bench() { # NAME FLAGS…; what fails does not end the others
    name=$1
    shift
    "$python" -m text2seg bench --markdown --output "$results/$name.json" "$@" >"$results/$name.md" ||
        echo "$name failed" >&2
    cat "$results/$name.md"
}

case ${1:-} in
    prepare) [ $# -eq 2 ] || usage ;;
    run) [ $# -ge 3 ] || usage ;;
    *) usage ;;
esac
"$@"
