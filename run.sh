#!/usr/bin/env bash
# Denoise every stack of a folder:  ./run.sh [INPUT_DIR [OUTPUT_DIR]] [-- FLAGS OF process.py]
#
# Without folders it denoises the sample that ships and prints the scores before and after. The
# result goes to OUTPUT_DIR, by default INPUT_DIR-denoised. The first run makes .venv. Settings of
# process.py may also be given as DENOISE_... variables; ./run.sh -- --help lists them.
set -euo pipefail

# For the sample, so that it ends soon by any method; recordings get the product's own.
sample_seconds=150

usage() {
  sed -n '2,6s/^# \{0,1\}//p' "$root/run.sh"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folders=()
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    -h | --help) usage && exit ;;
    -*) echo "run.sh: flags of process.py go behind --, as in: ./run.sh recordings -- $1" >&2 && exit 2 ;;
  esac
  folders+=("$1") && shift
done
(($# == 0)) || shift  # the --
if ((${#folders[@]} > 2)); then usage >&2 && exit 2; fi

if ((${#folders[@]})); then
  [[ -d ${folders[0]} ]] || { echo "run.sh: there is no folder '${folders[0]}'" >&2 && exit 2; }
  input=$(cd "${folders[0]}" && pwd)
  output=${folders[1]:-$input-denoised}
  mkdir -p "$output"
  output=$(cd "$output" && pwd)
else
  input=$root/test/input output=$root/output
  export DENOISE_TIME_LIMIT=${DENOISE_TIME_LIMIT:-$sample_seconds}
fi

cd "$root"
# shellcheck source=venv.sh
source venv.sh
make_venv requirements.txt
.venv/bin/python process.py --input-dir "$input" --output-dir "$output" "$@"

if ((${#folders[@]} == 0)); then
  noisy=$(echo "$input"/images/stacked-neuron-images-with-noise/*)
  denoised=$output/images/stacked-neuron-images-with-reduced-noise/$(basename "$noisy")
  echo && .venv/bin/python -m lab.score "test/expected/$(basename "$noisy")" "$noisy" "$denoised"
fi
echo
echo "The result is in $output"
