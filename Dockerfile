# The page on the CPU, as a user without rights, with the jobs in a volume:
#   docker build -t splatsmith .
#   docker run --rm -p 127.0.0.1:7860:7860 -e SPLATSMITH_AUTH=name:password -v splatsmith-jobs:/jobs splatsmith
FROM python:3.12-slim-bookworm
# A compiler for the renderer's kernels; the others are what open3d and libusb-package link to.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ libegl1 libgl1 libgomp1 libudev1 libx11-6 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /splatsmith
COPY . .
# torch for the CPU: the ordinary one brings gigabytes for GPUs that a container does not see.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu --constraint constraints.txt . \
    && useradd --create-home --uid 1000 smith && mkdir /jobs && chown smith /jobs
USER smith
VOLUME /jobs
EXPOSE 7860
# Everybody who reaches the port may use the page, so give SPLATSMITH_AUTH, and read docs/security.md.
ENTRYPOINT ["splatsmith"]
CMD ["ui", "--host", "0.0.0.0", "--root", "/jobs"]
