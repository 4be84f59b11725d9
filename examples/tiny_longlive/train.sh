#!/usr/bin/env bash
# One call of tiny-longlive's training, of five to eight minutes, on all GPUs of a machine:
#
#     bash examples/tiny_longlive/train.sh PHASE FROM TO [PYTHON]
#
# PHASE: vae, ar-1, ar-2, few, in this order; docs/tiny-longlive.md says what to look at after each.
# FROM: the folder that the call before left, nothing for vae. TO: a folder for what this one leaves,
# which is also brought up to date every two minutes, so that little is lost if the call is killed:
#   weights.tar.aa, .ab, ...   everything that the next call needs, in pieces under 16 MB
#   sheets.tar                 sample sheets, to look at
#   log.txt                    what it printed
set -euo pipefail

phase=$1 from=$2 to=$3
run=build/tiny few=build/tiny-few
python=${4:-python}
gpus=$(nvidia-smi --list-gpus | wc -l)
# Of each GPU. With more than two, half of it: then there are more steps too, not only larger ones.
crops=32 runs=16 openings=192 rolls=48
if [ "$gpus" -gt 2 ]; then
    crops=16 runs=8 openings=96 rolls=24
fi
mkdir -p "$run" "$few" "$to"
if compgen -G "$from/weights.tar.*" > /dev/null; then
    cat "$from"/weights.tar.* | tar x -C build
fi

pack() {
    local folders=(tiny)
    [ "$phase" = few ] && folders=(tiny-few)
    # 1: a file was replaced while it was read. Then the piece of two minutes later is good.
    { tar c -C build --exclude='*.png' --exclude=.new "${folders[@]}" || [ $? = 1 ]; } |
        split -b 15000000 - "$to/new.tar."
    rm -f "$to"/weights.tar.*
    local piece
    for piece in "$to"/new.tar.*; do
        mv "$piece" "$to/weights.tar.${piece##*.}"
    done
    find build/tiny build/tiny-few -name "*.png" -newer "$to/begun" | tar cf "$to/sheets.tar" -T -
}

module() {
    "$python" -m "examples.tiny_longlive.$@"
}

# CUDA graphs where they work and are faster: tried for half a minute each. Prints the flag.
fastest() {
    local folder=build/trial best="" most=0 flag steps
    for flag in "" --graphs; do
        rm -rf "$folder"
        cp -r "$run" "$folder"
        rm -f "$folder"/*.jsonl
        # A trial that hangs is one that does not work.
        timeout --signal=INT --kill-after=5 100 "$python" -m "examples.tiny_longlive.$1" "${@:2}" \
            --out "$folder" --gpus "$gpus" $flag > "$folder/trial.txt" 2>&1 || { tail -n 5 "$folder/trial.txt" >&2; continue; }
        steps=$(grep -h '"done"' "$folder"/*.jsonl | sed 's/.*"step": \([0-9]*\).*/\1/')
        echo "trial of '$1 $flag': $steps steps" >&2
        if [ "$steps" -gt "$most" ]; then most=$steps best=$flag; fi
    done
    echo "$best"
}

train() {
    case $phase in
        vae)
            flag=$(fastest train_vae --seconds 25 --clips 256 --batch $crops)
            module train_vae --out "$run" --gpus "$gpus" --seconds 280 --batch $crops $flag
            ;;
        ar-1)
            flag=$(fastest train_ar --seconds 35 --pool 6 --clips $runs --openings $openings)
            echo "$flag" > "$run/flag.txt"
            module train_ar --out "$run" --gpus "$gpus" --seconds 300 --part 1/2 \
                --clips $runs --openings $openings $flag
            ;;
        ar-2)
            module train_ar --out "$run" --gpus "$gpus" --seconds 400 --part 2/2 \
                --clips $runs --openings $openings $(cat "$run/flag.txt")
            ;;
        few)
            module train_few_steps --teacher "$run" --out "$few" --gpus "$gpus" --seconds 300 \
                --clips $rolls --openings $openings $(cat "$run/flag.txt")
            ;;
        *)
            echo "no phase $phase: vae, ar-1, ar-2 or few" >&2
            exit 2
            ;;
    esac
}

look() {
    case $phase in
        ar-*) module samples --out "$run" --name "$phase" --steps 4 24 ;;
        few) module samples --out "$few" --name few --steps 4 2 ;;
    esac
}

touch "$to/begun" "$to/log.txt"
(train && pack && look) > "$to/log.txt" 2>&1 &
work=$!
tail -f --pid=$work "$to/log.txt" &
waited=0
while kill -0 $work 2> /dev/null; do
    sleep 1
    waited=$((waited + 1))
    if [ $((waited % 120)) = 0 ]; then pack; fi
done
status=0
wait $work || status=$?
pack
rm -f "$to/begun"
exit $status
