#!/usr/bin/env bash
# Everything that wants a GPU, what is right before what is fast:
#
#     benchmarks/on_gpu.sh build/gpu
#
# Wants `python -m benchmarks.prepared --target sm_90a --out build/prepared` done before, on any
# machine: it takes minutes of a processor. What a step prints is in its own file of the folder, which
# is there even when the next one is cut off. Tests say their names as they fail.
set -uo pipefail
out=${1:?a folder for what is found}
mkdir -p "$out"

python -m pytest tests/backends tests/runtime/test_on_gpu.py tests/runtime/test_streams.py \
    tests/runtime/test_cuda_graphs.py tests/runtime/test_overlap.py -v --tb=short -p no:cacheprovider \
    -k "not compil and not spill and not chip and not builds and not instruction and not binary" \
    > "$out/tests.log" 2>&1
grep -E "FAILED|ERROR" "$out/tests.log" | head -40
tail -1 "$out/tests.log"

python -m benchmarks.denoise --prepared build/prepared --check --repeats 10 --rounds 2 \
    --op-runs 2 --rollout 6 --out "$out" --name denoise > "$out/denoise.log" 2>&1
grep -E "^llvq|^PyTorch|FAILED" "$out/denoise.log"

python -m benchmarks.random_box "$out/5b.llvq" --target sm_90a --numerics w4a8 > "$out/box.log" 2>&1
python -m benchmarks.cold_start "$out/5b.llvq" --out "$out" | tail -1
python -m llvq bench "$out/5b.llvq" --chunks 8 --steps 2 > "$out/bench.txt" 2>&1
cat "$out/bench.txt"

python -m benchmarks.random_box "$out/fp8.llvq" --target sm_90a --numerics w4a8 --conv fp8 \
    >> "$out/box.log" 2>&1
python -m benchmarks.decode "$out/5b.llvq" "$out/fp8.llvq" --out "$out" > "$out/decode.log" 2>&1
python -m benchmarks.end_to_end "$out/fp8.llvq" --out "$out" > "$out/end_to_end.log" 2>&1
cat "$out/end_to_end.txt"
benchmarks/sanitize.sh "$out/sanitized"
