#!/bin/bash
# A whole slide from nothing to a score: simulate, cut into tiles, train briefly, predict, score; killed while predicting, and resumed.
#
#     tests/experiments/whole_slide.sh [FOLDER]
#
# Prints what each command said, its seconds, and its peak memory (GNU time). About five minutes on two cores.
set -eu
here=${1:-runs/whole_slide}
mkdir -p "$here"
measured() {
  echo "\$ $*" | sed "s|$here/||g"
  /usr/bin/time -f "  %e s, peak %M KiB" "$@" 2>&1 | tr '\r' '\n' | grep -v '%|' | tail -n "${SHOWN:-3}"
}

SHOWN=2 measured cellseg data simulate slide --size 12000,16000 --seed 41 --out "$here/new"
SHOWN=2 measured cellseg data simulate slide --size 12000,16000 --seed 40 --out "$here/old"
measured cellseg tiles create "$here/old/slides" "$here/old/labels.csv" --um-per-px 8 --out "$here/tiles"
SHOWN=4 measured cellseg train glomeruli data.dataset="$here/tiles" data.validation_fraction=0 training.epochs=10 --out "$here/training"

predict=(cellseg slide "$here/new/slides" --model "$here/training/model" --tile 256 --overlap 32)
SHOWN=8 measured "${predict[@]}" --out "$here/whole"
"${predict[@]}" --out "$here/killed" > /dev/null 2>&1 &
until grep -q '"rows": [1-9]' "$here"/killed/.*_scratch/rows.json 2> /dev/null; do sleep .05; done
kill -9 $!
wait $! 2> /dev/null || true
echo "killed after $(grep -o '"rows": [0-9]*' "$here"/killed/.*_scratch/rows.json) of 750"
SHOWN=1 measured "${predict[@]}" --out "$here/killed"
for file in predicted.csv objects.csv; do cmp "$here/whole/$file" "$here/killed/$file" && echo "$file: the same, byte for byte"; done
for file in "$here"/whole/*_mask.ome.tif; do cmp "$file" "$here/killed/$(basename "$file")" && echo "$(basename "$file"): the same, byte for byte"; done
measured cellseg tiles score "$here/new/slides" --truth "$here/new/labels.csv" --pred "$here/whole/predicted.csv"

SHOWN=3 measured cellseg slide "$here/new/slides" --out "$here/shipped"  # the model of the package, trained for longer on twelve slides
measured cellseg tiles score "$here/new/slides" --truth "$here/new/labels.csv" --pred "$here/shipped/predicted.csv"
