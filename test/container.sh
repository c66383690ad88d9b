#!/usr/bin/env bash
# Build the image and run it the platform's way, on the sample and on a broken file.
#
#   test/container.sh           with the Docker engine of this machine
#   test/container.sh TOOL      through TOOL INPUT_DIR OUTPUT_DIR FLAGS ..., which builds and runs
# TORCH=... chooses the torch in the image. Needs the .venv that test.sh makes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tool=${1:-}
image=calcium-denoiser:test
slug=images/stacked-neuron-images-with-noise
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() {
  echo "container test: $1" >&2
  echo "--- stdout, then stderr, of the container" >&2
  tail -n 20 "$scratch/stdout" "$scratch/stderr" >&2
  exit 1
}

# run_tool INPUT_DIR OUTPUT_DIR FLAGS ...: TOOL starts an engine of its own and tells it to end
run_tool() {
  local code=0 attempt
  for attempt in 1 2 3; do
    # an engine that is still ending holds the locks that the next one waits for
    for _ in {1..120}; do pgrep -x dockerd >/dev/null || break; sleep 0.5; done
    code=0
    "$tool" "$@" >"$scratch/stdout" 2>"$scratch/stderr" || code=$?
    grep -aq "engine did not start" "$scratch/stdout" || break
    echo "container test: no engine at attempt $attempt" >&2
  done
  return "$code"
}

# run_image INPUT_DIR OUTPUT_DIR FLAGS ...: the platform's limits; its exit code, stdout and stderr
run_image() {
  local input=$1 output=$2 gpu=() container code=0
  mkdir -p "$output" && chmod 777 "$output"
  chmod -R a+rX "$input"
  if [[ $tool ]]; then
    run_tool "$@"
    return
  fi
  ! docker info --format '{{json .Runtimes}}' | grep -q nvidia || gpu=(--gpus all)
  # created, then started: the engine's own warnings stay out of the container's stderr
  container=$(docker create "${gpu[@]}" --network none --read-only --tmpfs /tmp:rw,exec,size=4g \
    --memory 15g --memory-swap 15g --ulimit data=16106127360 --shm-size 8g --pids-limit 512 \
    --cap-drop ALL --security-opt no-new-privileges \
    --volume "$input":/input:ro --volume "$output":/output "$image" "${@:3}" 2>/dev/null)
  docker start --attach "$container" >"$scratch/stdout" 2>"$scratch/stderr" || code=$?
  docker rm "$container" >/dev/null
  # what the image's user wrote must be removable by ours
  docker run --rm --network none --user 0 --entrypoint chmod --volume "$output":/output "$image" -R a+rwX /output
  return "$code"
}

if [[ $tool ]]; then
  export IMAGE=$image BUILD_ARGS="${TORCH:+--build-arg TORCH=$TORCH}"
else
  docker build ${TORCH:+--build-arg "TORCH=$TORCH"} --tag "$image" .
  user=$(docker image inspect --format '{{.Config.User}}' "$image")
  [[ -n $user && $user != root && $user != 0 ]] || fail "the image runs as root"
fi

# as it is uploaded, and Restormer3D
for flags in "" "--method restormer3d --steps 1"; do
  SECONDS=0
  code=0
  # shellcheck disable=SC2086  # several words
  run_image "$PWD/test/input" "$scratch/output-${#flags}" $flags || code=$?
  ((code == 0)) || fail "exit code $code on the sample"
  [[ ! -s $scratch/stderr ]] || fail "something on stderr, which the platform shows as a warning"
  .venv/bin/python test/check_output.py test/input "$scratch/output-${#flags}" || fail "wrong output"
  echo "container test: the sample, $flags $SECONDS s"
done

SECONDS=0
code=0
mkdir -p "$scratch/broken/$slug"
echo "not a TIFF" >"$scratch/broken/$slug/broken.tif"
run_image "$scratch/broken" "$scratch/none" || code=$?
((code == 1)) || fail "exit code $code on a broken file, expected 1"
# Not "the last line": TOOL may add lines of its own. test/contract holds the program alone to that.
grep broken.tif "$scratch/stderr" || fail "no line of stderr names the broken file"
[[ -z $(find "$scratch/none" -name '*.tif') ]] || fail "an output for a broken file"
echo "container test: a broken file, $SECONDS s"
