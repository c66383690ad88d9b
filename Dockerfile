# The Grand-Challenge algorithm image: reads /input, writes /output, needs no arguments and no network.
FROM --platform=linux/amd64 python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="calcium-denoiser" \
      org.opencontainers.image.description="Denoises two-photon calcium-imaging stacks"

# The platform's driver is not documented, so the image ships CUDA 12: 2.7.1 is built for CUDA 12.6
# and knows the platform's T4 (sm_75). Later CUDA 12 builds bring a cuDNN from 9.8 to 9.15, whose 3-D
# convolutions are silently wrong below full fp32 precision (pytorch issue 163539; torch 2.9 and later
# avoid them at a great cost in speed). A GPU newer than Hopper needs --build-arg TORCH=2.13.0 and
# a driver of 580 or newer.
ARG TORCH=2.7.1

# uid 1000 is the first user of most Linux machines, whose folders it may then write when mounted.
# /output belongs to that user, for a named volume mounted there takes over its owner.
RUN useradd --create-home --uid 1000 denoiser \
    && install -d -o denoiser /output

# Libraries before code: a change of code then rebuilds, and uploads, only the small layers. Every
# wheel is held to its sum (python -m lab.lock), but for a torch other than the release's.
# Compiled bytecode stays, it halves the start-up. What goes: the tests and headers of torch, and
# Triton, which cannot work here anyway because it needs a C compiler.
COPY locks /opt/app/locks
RUN install="pip install --no-cache-dir --root-user-action=ignore --disable-pip-version-check" \
    && $install --require-hashes -r /opt/app/locks/base.txt \
    && lock=/opt/app/locks/torch-${TORCH}.txt \
    && if [ -f "$lock" ]; then $install --require-hashes -r "$lock"; else $install "torch==${TORCH}"; fi \
    && pip uninstall --yes --quiet --root-user-action=ignore triton \
    && torch=$(python -c "from importlib.util import find_spec as f; print(f('torch').submodule_search_locations[0])") \
    && rm -rf "$torch/test" "$torch/include" "$torch"/bin/*[Tt]est*

COPY weights /opt/app/weights
COPY model /opt/app/model
COPY process.py /opt/app/
# A checkout with a strict umask must not end in an image that its user cannot read.
RUN chmod -R a+rX,go-w /opt/app

# The root file system may be read-only and the user unknown to it (docker run --user): caches go to
# /tmp, the one place besides /output that can always be written.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/tmp/cache \
    CUDA_CACHE_PATH=/tmp/cache/cuda \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/torch

USER denoiser
WORKDIR /opt/app
ENTRYPOINT ["python", "/opt/app/process.py"]
