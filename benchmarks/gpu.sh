#!/bin/sh
# Measure text2seg on a CUDA machine without network.
#
#   benchmarks/gpu.sh prepare WHEELS               with network: download the packages for `run` into the folder WHEELS
#   benchmarks/gpu.sh run WHEELS RESULTS           on the GPU machine: install, test, measure; under ten minutes
#   benchmarks/gpu.sh run WHEELS RESULTS --quick   the same with the demo model and small images, on any machine
#
# The GPU machine needs Python with venv, torch 2.11 or newer and its torchvision. WHEELS does not contain torch, because
# it is built for the machine's driver. Packages that are installed already are used. PYTHON is the Python to use. If the
# GPU machine has another Python than this one, set PIP_ARGS for `prepare`:
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
    # These two are published as source only. They have no machine code, so they can be built on any machine.
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$1" "$here" openai-clip segment-anything
    # Everything that text2seg needs except torch, which `pip download` would add with gigabytes of CUDA libraries.
    # shellcheck disable=SC2086  # PIP_ARGS is a list
    "$python" -m pip download --quiet --no-deps --only-binary=:all: ${PIP_ARGS:-} --dest "$1" \
        annotated-types contourpy cycler docstring-parser filelock fonttools ftfy jinja2 kiwisolver markdown-it-py \
        markupsafe matplotlib mdurl numpy opencv-python-headless packaging pillow platformdirs pycocotools pydantic \
        pygments pyparsing python-dateutil regex rich ruamel.yaml safetensors 'setuptools<82' six tqdm typeguard \
        typing-extensions typing-inspection tyro wcwidth pytest hypothesis iniconfig pluggy sortedcontainers
    # pydantic needs one exact version of its core.
    core=$(unzip -p "$1"/pydantic-[0-9]*.whl '*/METADATA' | sed -n 's/^Requires-Dist: \(pydantic-core==[^;]*\).*/\1/p')
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --no-deps --only-binary=:all: ${PIP_ARGS:-} --dest "$1" "$core"
    du -sh "$1"
}

run() { # WHEELS RESULTS [--quick]
    mkdir -p "$2"
    results=$(cd "$2" && pwd)
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
    # A new environment that also sees the packages of PYTHON, which may itself be in an environment.
    "$python" -m venv "$temporary/venv"
    folder=$("$temporary/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' >"$folder/given.pth"
    python=$temporary/venv/bin/python
    if ls "$1"/*.whl >/dev/null 2>&1; then
        "$python" -m pip install --quiet --no-index --find-links "$1" text2seg pytest hypothesis
    fi
    export PYTHONPATH="$here" TEXT2SEG_TEXT_CACHE=off
    cd "$here"
    "$python" -c 'import torch as t; print(t.__version__, t.cuda.get_device_name() if t.cuda.is_available() else "CPU")'
    if [ "${3:-}" = --quick ]; then
        bench quick --quick
        "$python" benchmarks/scaling.py --quick --output "$results/scaling"
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
    "$python" benchmarks/scaling.py --most-images 1000 --output "$results/scaling"
}

bench() { # NAME FLAGS…; continues after a failure
    name=$1
    shift
    "$python" -m text2seg benchmark speed --markdown --output "$results/$name.json" "$@" >"$results/$name.md" ||
        echo "$name failed" >&2
    cat "$results/$name.md"
}

case ${1:-} in
    prepare) [ $# -eq 2 ] || usage ;;
    run) [ $# -ge 3 ] || usage ;;
    *) usage ;;
esac
"$@"
