# The page on the CPU, as a user without rights, with the jobs in a volume:
#   docker build -t splatsmith .
#   docker run --rm -p 127.0.0.1:7860:7860 -e SPLATSMITH_AUTH=name:password -v splatsmith-jobs:/jobs splatsmith
# Any other command works too: docker run --rm -v "$PWD:/jobs" splatsmith photos /jobs/photos --out /jobs/scene

FROM python:3.11-slim-bookworm AS wheel
# A compiler for the renderer's kernels, which travel inside the wheel; it stays behind in this stage.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY assets assets
COPY splat splat
COPY recon recon
COPY diffusion diffusion
COPY app app
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# What open3d and libusb-package link to.
RUN apt-get update && apt-get install --yes --no-install-recommends libegl1 libgl1 libgomp1 libudev1 libx11-6 \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/
COPY --from=wheel /wheels /tmp/wheels
# torch for the CPU: the ordinary one brings gigabytes for GPUs that a container does not see.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu --constraint /tmp/constraints.txt \
        "$(echo /tmp/wheels/*.whl)[usd]" \
    && rm -r /tmp/wheels /tmp/constraints.txt \
    && useradd --create-home --uid 1000 smith && mkdir /jobs && chown smith /jobs
USER smith
WORKDIR /jobs
VOLUME /jobs
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=4)"]
# Everybody who reaches the port may use the page, so give SPLATSMITH_AUTH, and read docs/security.md.
ENTRYPOINT ["splatsmith"]
CMD ["ui", "--host", "0.0.0.0", "--root", "/jobs"]
