#!/usr/bin/env bash
# Checks and measures a real GPU, in at most six minutes: the self test of every kernel, the table
# of products, a language model. Build first, where there is time:
#   cargo build --release --workspace --all-features --bin gpu_bench --example llama
# Usage: gpu_check.sh FOLDER. Writes selftest.txt, table.txt, table.json and llama.json there. Add
# options of gpu_bench (`--software`, `--adapter NAME`) after FOLDER.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
mkdir -p "$out"
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/tmp}"
bench=target/release/gpu_bench failed=0
timeout 60 "$bench" --selftest "$@" 2>&1 | tee "$out/selftest.txt" || failed=1
timeout 30 "$bench" --selftest --cooperative "$@" 2>&1 | tee -a "$out/selftest.txt" || failed=1
timeout 150 "$bench" --shapes 14336x4096,4096x14336 --batches 1,2,4,8,16,64 --cooperative \
    --json "$out/table.json" "$@" 2>&1 | tee "$out/table.txt" || failed=1
timeout 110 target/release/examples/llama --make 1B --backend gpu --bench 32 --json \
    >"$out/llama.json" || failed=1
tail -n 1 "$out/llama.json"
exit $failed
