#!/usr/bin/env bash
# Every kernel's CUDA C++, as launched at Super's shapes, compiled by NVRTC to cubins for each
# architecture we serve on; needs no GPU. Registers, spills and shared memory go to
# benches/REGISTERS.md.
# Usage: engine/kernels/cube/cuda/check.sh [NAME...]
# With names only kernels whose names contain one: their table is printed, and texts, cubins and
# disassembly are kept in the folder it names. CARGO_SELECT=--workspace where the workspace is built.
set -euo pipefail
cd "$(dirname "$0")/../../../.."
source tests/clients/lib.sh

python="$(python_with nvrtc engine/kernels/cube/cuda/requirements.txt)"
texts="$work/texts"
if [ $# -gt 0 ]; then texts="$(mktemp -d)"; fi
# shellcheck disable=SC2086
NEMOSERVE_CUDA_TEXT="$texts" NEMOSERVE_CUDA_ONLY="$*" cargo test --quiet ${CARGO_SELECT:---package cube-kernels} --test cuda --locked > "$work/log" 2>&1 || {
    cat "$work/log"
    exit 1
}
if [ $# -gt 0 ]; then
    "$python" engine/kernels/cube/cuda/compile.py "$texts" "$work/table.md" "$@" || status=$?
    cat "$work/table.md"
    echo "texts, cubins and disassembly: $texts"
    exit "${status:-0}"
fi
"$python" engine/kernels/cube/cuda/compile.py "$texts" benches/REGISTERS.md
