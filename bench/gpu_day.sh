#!/usr/bin/env bash
# All that a machine with a GPU is for, unattended, in order and within BUDGET seconds: is it right, and how fast is it?
#
#   bench/gpu_day.sh [--dry-run] [--parts "NAME ..."] [--variants FOLDER]
#
# --parts: these parts alone. --variants: each .so of the folder is a native library, timed in the place of the built one.
# Environment: BUDGET=1500 (below 900: the short way, without full checks, profilers and variants), OUT=gpu-day, PYTHON
# (.venv's, else python3). Nothing is installed, downloaded or set on the GPU. Each part has its own time limit, and a
# failure does not end the run. Exit status: 0; 1 if a part failed or had no time; 3 after a dry run without failures.
set -uo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
BUDGET=${BUDGET:-1500} DRY_RUN='' PARTS='' VARIANTS=''
SHORT_BUDGET=900 LONG_PARTS_SECONDS=1500 SHORT_PARTS_SECONDS=480
LARGEST=$((15 * 1024 * 1024)) # of a file in OUT

usage() {
  echo "Usage: bench/gpu_day.sh [--dry-run] [--parts \"NAME ...\"] [--variants FOLDER]" >&2
  echo "$1" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    --parts | --variants)
      (($# > 1)) || usage "Invalid $1: a value is missing"
      if [[ $1 == --parts ]]; then PARTS=$2; else VARIANTS=$2; fi
      shift
      ;;
    *) usage "Invalid argument $1" ;;
  esac
  shift
done
[[ $BUDGET =~ ^[1-9][0-9]+$ ]] || usage "Invalid BUDGET=$BUDGET: must be a number of seconds, at least 10"
[[ -z $VARIANTS ]] || compgen -G "$VARIANTS/*.so" >/dev/null || usage "Invalid --variants $VARIANTS: holds no .so"
NAMES="library doctor quick-native quick-triton full-native full-triton test-cuda bench ncu sanitizer variants"
for name in $PARTS; do
  [[ " $NAMES " == *" $name "* ]] || usage "Invalid --parts $name: must be some of $NAMES"
done

PYTHON=${PYTHON:-$([[ -x $ROOT/.venv/bin/python ]] && echo "$ROOT/.venv/bin/python" || echo python3)}
OUT=$(mkdir -p "${OUT:-gpu-day}" && cd "${OUT:-gpu-day}" && pwd) || usage "Invalid OUT: cannot be made"
WORK=$(mktemp -d)
LOGS=$WORK/logs SUMMARY=$OUT/summary.txt FAILED=0 CHILD='' DONE=''
mkdir "$LOGS"
SECONDS=0
export PYTHONUNBUFFERED=1 PYTHONUTF8=1 COLUMNS=${COLUMNS:-120}
[[ -z $DRY_RUN ]] || export TRITON_INTERPRET=1

say() { echo "$*" | tee -a "$SUMMARY"; }

left() { echo $((BUDGET - SECONDS)); }

# Seconds of a part, of the mode's plan, as this budget has them.
planned() {
  if ((BUDGET < SHORT_BUDGET)); then echo $(($1 * BUDGET / SHORT_PARTS_SECONDS)); else
    echo $(($1 * BUDGET / LONG_PARTS_SECONDS)); fi
}

wanted() { [[ -z $PARTS || " $PARTS " == *" $1 "* ]]; }

# All logs as one file; the largest are cut where that exceeds what a file may have.
pack() {
  local largest
  while tar -czf "$OUT/logs.tar.gz" -C "$WORK" logs && (($(stat -c %s "$OUT/logs.tar.gz") > LARGEST)); do
    largest=$(find "$LOGS" -type f -size +1000000c -printf '%s %p\n' | sort -rn | head -1 | cut -d' ' -f2-)
    [[ -n $largest ]] || break
    say "too large for logs.tar.gz: of ${largest##*/} the last MB is kept"
    tail -c 1000000 "$largest" >"$WORK/cut" && mv "$WORK/cut" "$largest"
  done
}

finish() {
  local code=$?
  trap - EXIT TERM INT
  [[ -z $CHILD ]] || kill "$CHILD" 2>/dev/null
  [[ -n $DONE ]] || say "gpu_day: BROKEN OFF after $SECONDS s"
  pack
  rm -rf "$WORK"
  exit "$code"
}
trap finish EXIT
trap 'exit 1' TERM INT

# tree FOLDER LIBRARY: the working tree by links, with this native library and with the Triton kernels where an
# installation has them. Python runs in it: what is installed elsewhere is not imported.
tree() {
  local entry
  mkdir -p "$1/lrtricks_fused"
  for entry in "$ROOT"/*; do
    [[ ${entry##*/} == lrtricks_fused ]] || ln -s "$entry" "$1/"
  done
  for entry in "$ROOT"/lrtricks_fused/*; do
    [[ ${entry##*/} == _native.so || ${entry##*/} == triton_kernels ]] || ln -s "$entry" "$1/lrtricks_fused/"
  done
  ln -s "$ROOT/triton_kernels" "$1/lrtricks_fused/triton_kernels"
  [[ ! -e $2 ]] || ln -s "$(realpath "$2")" "$1/lrtricks_fused/_native.so"
}

# part NAME SECONDS STATUS COMMAND...: runs it in TREE, within so many seconds and those of the budget that are left.
# STATUS is the one that it passes with.
part() {
  local name=$1 limit=$2 passes=$3 code verdict=ok begin=$SECONDS log=$LOGS/$1.txt
  shift 3
  ((limit <= $(left))) || limit=$(left)
  if ((limit < 10)); then
    say "$(printf '%-16s NO TIME' "$name")"
    FAILED=1
    return
  fi
  echo "== $name (at most $limit s): $*"
  (cd "$TREE" && exec timeout -k 15 "$limit" "$@") >"$log" 2>&1 &
  CHILD=$!
  wait "$CHILD"
  code=$?
  CHILD=''
  tail -n 25 "$log" | cut -c 1-300
  if ((code != passes)); then
    verdict="FAILED (status $code)"
    ((code != 124 && code != 137)) || verdict="TIME OVER"
    FAILED=1
  fi
  say "$(printf '%-16s %-20s %4d s  %s' "$name" "$verdict" $((SECONDS - begin)) "$(grep . "$log" | tail -1 | cut -c 1-160)")"
  pack
}

not_there() { say "$(printf '%-16s not run: %s' "$1" "$2")"; }

build_library() {
  local archs
  archs=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return
  (cd "$ROOT" && TORCH_CUDA_ARCH_LIST=$archs exec timeout -k 15 "$1" "$PYTHON" setup.py build_ext --inplace)
}

# Says why the native library cannot step on this GPU, or, where there is none, why it does not load.
LOADS='import sys, torch
from lrtricks_fused.step import backends, native
there = torch.cuda.is_available()
sys.exit((backends.why_not("native", torch.device("cuda")) if there else native.load_error) or 0)'
LIBRARY=$ROOT/lrtricks_fused/_native.so TREE=$WORK/tree
tree "$TREE" "$LIBRARY"

library() { # there, and fit for this torch; else it is built for this GPU
  part library "$(planned 60)" 0 "$PYTHON" -c "$LOADS"
  if ((FAILED)) && [[ -z $DRY_RUN ]] && command -v nvcc >/dev/null; then
    FAILED=0
    build_library "$(planned 300)" >"$LOGS/build.txt" 2>&1 || tail -c 2000 "$LOGS/build.txt"
    rm -rf "$TREE" && tree "$TREE" "$LIBRARY"
    part library "$(planned 60)" 0 "$PYTHON" -c "$LOADS"
  fi
}

verify() { # NAME BACKEND SECONDS [OPTION...]
  local name=$1 backend=$2 limit device=cuda only=()
  limit=$(planned "$3")
  shift 3
  wanted "$name" || return 0
  [[ -z $DRY_RUN ]] || device=cpu only=(--quick --only backend)
  # Fewer seconds than the limit: what has been checked by then is reported.
  part "$name" "$limit" 0 "$PYTHON" -m lrtricks_fused.tools.cli verify --device $device --backend "$backend" \
    --seconds $((limit * 9 / 10 - 5)) "$@" ${only[@]+"${only[@]}"}
}

test_cuda() {
  local workers=()
  ! "$PYTHON" -c 'import xdist' 2>/dev/null || workers=(-n 4)
  [[ -z $DRY_RUN ]] || workers=() # without a GPU a few cases of each are stepped by the CPU
  part test-cuda "$(planned "$1")" 0 "$PYTHON" -m pytest -q --tb=short -rfE --maxfail=40 -p no:cacheprovider \
    ${workers[@]+"${workers[@]}"} tests/kernels/test_cuda.py
}

bench() { # SECONDS for the parts that follow
  local seconds=$(($(left) - $1)) passes=0 options=()
  ((seconds >= 60)) || seconds=60
  [[ -z $DRY_RUN ]] || passes=3 options=(--dry-run --no-compile --rows '^16M fp32, Adam$')
  part bench $((seconds + 15)) $passes "$PYTHON" -m bench.gpu --budget "$seconds" --json "$OUT/bench.json" \
    ${options[@]+"${options[@]}"}
  [[ ! -e $LOGS/bench.txt ]] || cp "$LOGS/bench.txt" "$OUT/bench.txt"
}

SECTIONS="SpeedOfLight MemoryWorkloadAnalysis LaunchStats Occupancy SchedulerStats WarpStateStats"

ncu_kernels() {
  local sections=() section
  for section in $SECTIONS; do sections+=(--section "$section"); done
  if [[ -n $DRY_RUN ]]; then
    part ncu "$(planned 90)" 3 "$PYTHON" -m bench.gpu.once --dry-run
  elif command -v ncu >/dev/null; then
    part ncu "$(planned 90)" 0 ncu --clock-control none --profile-from-start off "${sections[@]}" \
      "$PYTHON" -m bench.gpu.once
  else
    not_there ncu "ncu is not on PATH"
  fi
}

sanitizer() {
  local tool limit
  limit=$(planned 60)
  if [[ -n $DRY_RUN ]] || ! command -v compute-sanitizer >/dev/null; then
    not_there sanitizer "compute-sanitizer is not on PATH, or this is a dry run"
    return
  fi
  for tool in memcheck racecheck; do
    # Without torch's own pool of memory, a block of which holds many tensors, or accesses past a tensor's end are missed.
    part "sanitizer-$tool" "$limit" 0 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
      --error-exitcode 9 "$PYTHON" -m lrtricks_fused.tools.cli verify --device cuda --quick --only clipping \
      --only "gradient centralization" --only Adam --seconds $((limit / 2))
  done
}

VARIANT_ROWS='^(16M (fp32|bf16), Adam(, (fp32|bf16) states)?|(ResNet-50|1,000 tensors of 1,000) fp32, Adam|16M fp32, (AMSGrad|SGD.momentum)|16M fp32, Adam, gradients at .*)$'

variants() {
  local libraries=("$LIBRARY" "$VARIANTS"/*.so) library name seconds passes=0 options=() files=()
  [[ -z $DRY_RUN ]] || passes=3 options=(--dry-run)
  seconds=$((($(left) - 10) / ${#libraries[@]}))
  for library in "${libraries[@]}"; do
    name=$(basename "$library" .so)
    [[ $library != "$LIBRARY" ]] || name=built
    tree "$WORK/$name" "$library"
    TREE=$WORK/$name part "variant-$name" $seconds $passes "$PYTHON" -m bench.gpu --backends native --no-compile \
      --rows "$VARIANT_ROWS" --budget $((seconds - 10)) --json "$LOGS/$name.json" ${options[@]+"${options[@]}"}
    [[ ! -e $LOGS/$name.json ]] || files+=("$LOGS/$name.json")
  done
  ((${#files[@]} < 2)) || (cd "$TREE" && "$PYTHON" -m bench.gpu.compare "${files[@]}") | tee "$OUT/variants.txt"
}

: >"$SUMMARY"
say "gpu_day${DRY_RUN:+, DRY RUN (nothing of a GPU is checked or measured)}: $BUDGET s, $PYTHON, commit $(git -C "$ROOT" rev-parse --short HEAD 2>/dev/null || echo unknown)"
! wanted library || library
! wanted doctor || part doctor "$(planned 60)" 0 "$PYTHON" -m lrtricks_fused.tools.cli doctor
if ((BUDGET < SHORT_BUDGET)) && [[ -z $PARTS ]]; then
  PARTS="quick-native quick-triton test-cuda bench"
fi
verify quick-native native 60 --quick
verify quick-triton triton 110 --quick
verify full-native native 150
verify full-triton triton 150
! wanted test-cuda || test_cuda 120
later=25 # the bench ends by itself
! wanted ncu || later=$((later + $(planned 90)))
! wanted sanitizer || later=$((later + $(planned 120)))
[[ -z $VARIANTS ]] || ! wanted variants || later=$((later + $(planned 200)))
! wanted bench || bench "$later"
! wanted ncu || ncu_kernels
! wanted sanitizer || sanitizer
[[ -z $VARIANTS ]] || ! wanted variants || variants
say "$( ((FAILED)) && echo "gpu_day: FAILURES above" || echo "gpu_day: all parts passed") after $SECONDS s; results in $OUT"
DONE=1
((FAILED)) && exit 1
[[ -z $DRY_RUN ]] || exit 3
