# Image of the app, made from a wheel of this folder. docs/docker.md describes how to build and run it.
ARG PYTHON=3.12

# Build and install everything in this stage. Compilers, sources and pip's cache are not part of the final image.
FROM python:${PYTHON}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/text2seg
# Index from which pip installs torch. Empty: the default index, whose wheels for Linux on x86 contain CUDA libraries.
# With PyTorch's index of wheels for the CPU, the image has a fifth of that size.
ARG TORCH_INDEX_URL=""
RUN /opt/text2seg/bin/pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch>=2.6" "torchvision>=0.21"
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY text2seg text2seg
RUN pip wheel --no-deps --wheel-dir dist . \
    && /opt/text2seg/bin/pip install "$(echo dist/text2seg-*.whl)[app,explain,search]"

FROM python:${PYTHON}-slim AS app
LABEL org.opencontainers.image.title="text2seg" org.opencontainers.image.licenses="MIT"
# Create the folder of checkpoints, so that a volume mounted there belongs to the user.
RUN useradd --uid 1000 --create-home text2seg && install --directory --owner text2seg /checkpoints
COPY --from=build /opt/text2seg /opt/text2seg
ENV PATH=/opt/text2seg/bin:$PATH PYTHONUNBUFFERED=1 TEXT2SEG_CHECKPOINTS=/checkpoints
# For NVIDIA's container runtime; without it they have no effect.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER text2seg
WORKDIR /home/text2seg
VOLUME /checkpoints
EXPOSE 7860
# Status 401 is healthy too: with --auth the check has no password.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 7860, timeout=8); c.request('GET', '/api/v1/health'); raise SystemExit(c.getresponse().status not in (200, 401))"]
# In the container the app listens on all addresses, or its port could not be published. compose.yaml publishes it on the
# loopback address only.
ENTRYPOINT ["text2seg"]
CMD ["app", "--host", "0.0.0.0", "--port", "7860"]
