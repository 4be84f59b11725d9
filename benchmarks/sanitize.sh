#!/usr/bin/env bash
# compute-sanitizer over the tests of our kernels on a GPU, one size of each test:
#
#     benchmarks/sanitize.sh build/sanitized [seconds]
#
# memcheck looks for accesses outside of a tensor, racecheck for hazards in shared memory, but not in
# kernels of cuDNN. Tests are dealt to processes, whose logs are <tool>.<number>.log beside what pytest
# printed, .txt. Whatever has not ended after the given seconds (80) is interrupted. The verdict comes
# last, also when this script itself is interrupted; exit code 0 says that all was run and all was
# clean.
set -uo pipefail
out=${1:?a folder for what is found}
seconds=${2:-80}
groups=7 # of each tool: two times this many processes
mkdir -p "$out"
rm -f "$out"/*.log "$out"/*.txt
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
skipped="compil or spill or chip or builds or instruction or binary or rollout or interpreter"

verdict() {
    trap - EXIT
    clean=0
    for tool in memcheck racecheck; do
        summaries=$(cat "$out/$tool".*.log 2> /dev/null | grep -h "SUMMARY" || true)
        ended=$(grep -c . <<< "$summaries")
        found=$(grep -cvE "SUMMARY: 0 (errors|hazards)" <<< "${summaries:-SUMMARY: 0 errors}")
        passed=$(cat "$out/$tool".*.txt 2> /dev/null | grep -hoE "[0-9]+ passed" |
            awk '{ total += $1 } END { print total + 0 }')
        bad=$(cat "$out/$tool".*.txt 2> /dev/null | grep -cE "^(FAILED|ERROR)" || true)
        word="clean"
        ((ended == groups)) || word="cut off"
        ((passed)) || word="nothing ran"
        ((bad == 0)) || word="tests failed"
        ((found == 0)) || word="FINDINGS"
        [[ $word == clean ]] || clean=1
        echo "$tool: $word: $found of $ended processes with findings, $groups started," \
            "$passed tests passed, $bad failed"
        cat "$out/$tool".*.log 2> /dev/null | grep -hE "Error: |Warning: |Invalid|hazard" |
            grep -v SUMMARY | sed "s/0x[0-9a-f]*/.../g" | sort | uniq -c | sort -rn | head -12
    done
    exit $clean
}
trap verdict EXIT
trap 'exit 1' INT TERM

# One size of each test, dealt round.
python -m pytest tests/backends/triton --collect-only -p no:cacheprovider -k "not ($skipped)" |
    grep "::" | awk -F'[' '!seen[$1]++' > "$out/tests.list"
for ((group = 0; group < groups; group++)); do
    awk -v group=$group -v groups=$groups 'NR % groups == group' "$out/tests.list" \
        > "$out/tests.$group.list"
done

# What racecheck finds in attention of cuDNN, which PyTorch calls, is not ours to mend.
theirs=cudnn_generated
# Each tensor is an allocation of its own, so that no neighbour hides what goes beyond it.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in memcheck racecheck; do
    excluded=()
    [[ $tool == memcheck ]] || excluded=(--kernel-name-exclude "kns=$theirs")
    for ((group = 0; group < groups; group++)); do
        timeout -s INT -k 5 "$seconds" "$sanitizer" --tool $tool --report-api-errors no \
            "${excluded[@]}" --log-file "$out/$tool.$group.log" --target-processes application-only \
            python -m pytest "@$out/tests.$group.list" -p no:cacheprovider --tb=short \
            > "$out/$tool.$group.txt" 2>&1 &
    done
done
wait
