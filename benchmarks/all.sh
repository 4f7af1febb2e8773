#!/bin/sh
# Measure all tables of docs/measurements and write them into the pages.
#
#   benchmarks/all.sh accuracy    does not depend on the load of the machine; about 20 minutes on two cores
#   benchmarks/all.sh timing      needs an idle machine; about 40 minutes on two cores
#   benchmarks/all.sh long        10,000 images twice, on an idle machine; about an hour on two cores
#   benchmarks/all.sh images      docs/compare.png and docs/flow.png
#
# PYTHON is the Python with text2seg installed.
set -u

python=${PYTHON:-.venv/bin/python}
cd "$(dirname "$0")/.." || exit 1
failed=0

measure() { # SCRIPT FLAGS…; continues after a failure
    echo "== benchmarks/$*"
    script=$1
    shift
    "$python" "benchmarks/$script" "$@" || { echo "failed: $script $*" >&2; failed=1; }
}

case ${1:-} in
    accuracy)
        measure accuracy.py demo --write
        measure accuracy.py options --write
        measure accuracy.py tiles --write
        measure accuracy.py refine --write
        measure attention.py --limit 8 --write
        measure search.py --write
        measure origins.py --write
        measure explain.py recognition --write
        measure explain.py faithfulness --limit 3 --write
        ;;
    timing)
        measure speed.py --models demo vit_b --sizes vga 12mp --queries 1 20 --images 4 1 --rounds 2 --minutes 8 --write
        measure latency.py --write
        measure scaling.py --write
        measure jobs.py memory --write
        measure jobs.py listing 100 2000 --write
        measure jobs.py ray --images 48 --write
        measure jobs.py cores --write
        measure search.py --seconds --write
        measure app_load.py --users 20 --minutes 1 --write
        measure peers.py --rounds 1 --write
        measure networks.py clips --rounds 1 --write
        measure networks.py sams --rounds 1 --write
        measure networks.py everything --rounds 1 --write
        ;;
    long)
        measure jobs.py kills --write
        ;;
    images)
        measure doc_images.py
        ;;
    *)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" >&2
        exit 2
        ;;
esac
exit $failed
