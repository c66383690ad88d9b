#!/usr/bin/env bash
# Build the image, try it, and pack it for upload:  ./export.sh [FILE.tar.gz]
# Beside it a bill of materials is written.
#
# The Dockerfile names the torch of the release; TORCH=... takes another. Needs Docker, on any machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

limit_bytes=10000000000  # the platform's own is higher for verified accounts; larger images start slowly
fail() { echo "export.sh: $1" >&2 && exit 1; }

command -v docker >/dev/null || fail "Docker is needed: install it (Debian: apt-get install docker.io)"
docker info >/dev/null 2>&1 || fail "no Docker engine answers: start it, or join the group 'docker'"
(cd weights && sha256sum --check --quiet SHA256SUMS) || fail "weights/ does not match its SHA256SUMS: fetch the weights again"

version=$(git describe --tags --always --dirty 2>/dev/null || date +%Y%m%d)
image=calcium-denoiser:$version
file=${1:-calcium-denoiser-$version.tar.gz}

docker build ${TORCH:+--build-arg "TORCH=$TORCH"} \
  --label "org.opencontainers.image.version=$version" --tag "$image" .

echo "Trying $image on the sample ..."
scratch=$(mktemp -d) && chmod 777 "$scratch"
clean_up() {
  docker run --rm --user 0 --entrypoint find --volume "$scratch":/output "$image" /output -mindepth 1 -delete
  rm -rf "$scratch" "$file.part"
}
trap clean_up EXIT
docker run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL \
  --volume "$PWD/test/input":/input:ro --volume "$scratch":/output "$image"
[[ -n $(find "$scratch/images" -type f -name '*.tif') ]] || fail "the image wrote no result for the sample"

# the flags of the build, for torch tells its list of architectures only where there is a GPU
built_for=$(docker run --rm --network none --entrypoint python "$image" -c \
  'import torch; print("CUDA", torch.version.cuda, torch._C._cuda_getArchFlags())')

bill=${file%.tar.gz}.sbom.json
docker run --rm --network none --entrypoint python --volume "$PWD/lab/bom.py":/bom.py:ro "$image" \
  /bom.py calcium-denoiser "$version" >"$bill"

echo "Packing $file ..."
docker save "$image" | gzip >"$file.part"
size=$(stat --format %s "$file.part")
((size <= limit_bytes)) || fail "$file would have $size bytes, more than $limit_bytes: too large to upload"
mv "$file.part" "$file"
echo "$file: $((size / 1000000)) MB packed, $(($(docker image inspect --format '{{.Size}}' "$image") / 1000000)) MB unpacked, $built_for"
echo "$bill: what is in it (CycloneDX)"

if [[ $built_for != "CUDA 12"*sm_75* ]]; then
  echo "NOT FOR UPLOAD: the platform needs CUDA 12 with sm_75 (its T4). Run ./export.sh without TORCH."
  exit
fi
cat <<END

To upload, on the page of your algorithm on grand-challenge.org:
  1. Once, under "Settings":
       GPU type            NVIDIA T4 Tensor Core GPU   (the default is none)
       Memory              16 GB                       (the default is 8)
       Input interface     stacked-neuron-images-with-noise
       Output interface    stacked-neuron-images-with-reduced-noise
  2. Under "Containers", "Upload a Container": choose $file.
  3. Wait until it says "Active", then run it on one stack under "Try-out Algorithm".
An account that is not verified may upload 2 GB only: verify it first.
A job keeps to the platform's usual limit of 20 minutes. For a phase with another limit, add
  ENV DENOISE_TIME_LIMIT=<its seconds, less 60>
to the end of the Dockerfile and export again.
END
