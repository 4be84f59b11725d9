#!/usr/bin/env bash
# Phases of tiny-longlive's training, each of five to eight minutes, on all GPUs of a machine:
#
#     bash examples/tiny_longlive/train.sh FROM TO PHASE...
#
# PHASE: vae, ar-1, ar-2 (once or more), few, in this order, all at once or a few in every call;
# docs/tiny-longlive.md says what to look at after each.
# FROM: the folder that the call before left, or one with the weights to go on from; nothing for vae.
# TO: a folder for what this call leaves, brought up to date every minute, so that little is lost if
# it is killed:
#   tiny.tar.aa, .ab, ...       what vae and ar have made, for the next call, in pieces under 16 MB
#   tiny-few.tar.aa, .ab, ...   what few has made: the model
#   sheets.tar                  sample sheets, to look at
#   log.txt                     what it printed
set -euo pipefail

from=$1 to=$2
shift 2
run=build/tiny few=build/tiny-few
gpus=$(python -c "import torch; print(torch.cuda.device_count())")
# Of each GPU. With more than two, half of it: then there are more steps too, not only larger ones.
crops=32 runs=16 openings=192 rolls=16
if [ "$gpus" -gt 2 ]; then
    crops=16 runs=8 openings=96 rolls=8
fi
mkdir -p "$run" "$few" "$to"
if compgen -G "$from/tiny.tar.*" > /dev/null; then
    cat "$from"/tiny.tar.* | tar x -C build
elif [ -f "$from/Wan2.2_VAE.safetensors" ]; then
    cp "$from"/* "$run"
fi

module() {
    python -m "examples.tiny_longlive.$@"
}

# Convolutions are bound by what they compute; steps of the denoiser are faster as CUDA graphs.
train() {
    local forcing=(--out "$run" --gpus "$gpus" --graphs --clips $runs --openings $openings)
    case $1 in
        vae) module train_vae --out "$run" --gpus "$gpus" --seconds 400 --batch $crops ;;
        ar-1) module train_ar "${forcing[@]}" --seconds 330 --part 1/2 ;;
        ar-2) module train_ar "${forcing[@]}" --seconds 480 --part 2/2 ;;
        few)
            module train_few_steps --teacher "$run" --out "$few" --gpus "$gpus" --graphs \
                --clips $rolls --openings $((openings / 2)) --seconds 400
            ;;
        *)
            echo "no phase $1: vae, ar-1, ar-2 or few" >&2
            return 2
            ;;
    esac
}

look() {
    case $1 in
        ar-*) module kinds --out "$run" && module samples --out "$run" --name "$1" --steps 4 24 ;;
        few) module kinds --out "$few" && module samples --out "$few" --name few --steps 4 2 ;;
    esac
}

pack() {
    local name piece
    for name in tiny tiny-few; do
        # Only what this call has made: the machine may hold what an earlier one has left.
        [ -n "$(find "build/$name" -type f -newer "$to/begun")" ] || continue
        # 1: a file was replaced while it was read. Then the piece of a minute later is good.
        { tar c -C build --exclude='*.png' --exclude=.new $name || [ $? = 1 ]; } |
            split -b 15000000 - "$to/new.tar."
        rm -f "$to/$name".tar.*
        for piece in "$to"/new.tar.*; do
            mv "$piece" "$to/$name.tar.${piece##*.}"
        done
    done
    find "$run" "$few" -name "*.png" -newer "$to/begun" | tar cf "$to/sheets.tar" -T -
}

all() {
    local phase
    for phase in "$@"; do
        train "$phase"
        # Beside the phase that comes next, which draws its samples at first.
        look "$phase" &
    done
    wait
}

touch "$to/begun" "$to/log.txt"
all "$@" > "$to/log.txt" 2>&1 &
work=$!
tail -f --pid=$work "$to/log.txt" &
waited=0
while kill -0 $work 2> /dev/null; do
    sleep 1
    waited=$((waited + 1))
    if [ $((waited % 60)) = 0 ]; then pack; fi
done
status=0
wait $work || status=$?
pack
rm -f "$to/begun"
exit $status
