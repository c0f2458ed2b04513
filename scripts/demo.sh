#!/usr/bin/env bash
# The main job, end to end: fit a generator, draw pairs, train segmenters, say whether the pairs helped.
#
#   bash scripts/demo.sh                                       on embedded MRI slices
#   bash scripts/demo.sh labelled=DIR unlabelled=DIR test=DIR  on your own folders
#
# Further key=value arguments are settings of configs/tiny/demo.yaml, e.g. draws=3 out=runs/mine.
# Interrupted? Run the same command again: it goes on where it stopped.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

out="" data=() settings=()
for argument in "$@"; do
  case "$argument" in
    labelled=*|unlabelled=*|test=*|mask_map=*|channels=*) data+=("data.$argument") ;;
    out=*) out="${argument#out=}" ;;
    *=*) settings+=("$argument") ;;
    *) echo "error: $argument: arguments are key=value. Repair: labelled=DIR unlabelled=DIR test=DIR" >&2; exit 2 ;;
  esac
done

setup_venv
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ ${#data[@]} -eq 0 ]; then
  out="${out:-runs/demo}"
  echo "[demo] 1/2 slicing the ICBM152 brain template with six simulated scanners"
  .venv/bin/python scripts/icbm.py --out "$out-data"
  data=("data.labelled=$out-data/labelled" "data.unlabelled=$out-data/unlabelled" "data.test=$out-data/test")
else
  out="${out:-runs/own}"
  echo "[demo] 1/2 your own folders: ${data[*]}"
fi
echo "[demo] 2/2 fit, draw, train, compare; about a quarter of an hour on two free CPU cores for the embedded data"
.venv/bin/segtrain compare configs/tiny/demo.yaml "${data[@]}" out="$out" "${settings[@]}"
echo "[demo] open $out/report.html in a browser; the numbers are in $out/report.json"
