# whitebox on a CPU, without a screen:
#
#   docker build -t whitebox .          with torch's CPU wheels: --build-arg TORCH_WHEELS=ADDRESS, as torch's own page has it
#   docker run --rm -v "$PWD:/work" whitebox train depict-ca-tiny
FROM python:3.12-slim-bookworm

ARG TORCH_WHEELS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 MPLBACKEND=Agg

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE whitebox_seg.py ./
COPY whitebox whitebox
COPY analysis analysis
COPY experiments experiments
COPY configs configs
RUN if [ -n "$TORCH_WHEELS" ]; then PIP_INDEX_URL="$TORCH_WHEELS" pip install -c constraints.txt torch torchvision; fi \
    && pip install -c constraints.txt . \
    && useradd --create-home --uid 1000 whitebox \
    && install -d -o whitebox -g whitebox /work

USER 1000
WORKDIR /work
ENTRYPOINT ["whitebox"]
CMD ["--help"]
