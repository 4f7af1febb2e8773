# The app in an image of its own, from a wheel of this folder. docs/docker.md says how to build and run it.
ARG PYTHON=3.12

# Everything is built and installed here; compilers, sources and pip's cache stay behind.
FROM python:${PYTHON}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/text2seg
# Where pip takes torch from. Empty: its default index, whose wheels for Linux on x86 bring the CUDA libraries with them;
# the address of PyTorch's wheels for the CPU gives an image of a fifth of that size.
ARG TORCH_INDEX_URL=""
RUN /opt/text2seg/bin/pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch>=2.6" "torchvision>=0.21"
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY text2seg text2seg
RUN pip wheel --no-deps --wheel-dir dist . \
    && /opt/text2seg/bin/pip install "$(echo dist/text2seg-*.whl)[app,explain,search]"

FROM python:${PYTHON}-slim AS app
LABEL org.opencontainers.image.title="text2seg" org.opencontainers.image.licenses="MIT"
# The checkpoints' folder is made here, so that a volume over it belongs to the user.
RUN useradd --uid 1000 --create-home text2seg && install --directory --owner text2seg /checkpoints
COPY --from=build /opt/text2seg /opt/text2seg
ENV PATH=/opt/text2seg/bin:$PATH PYTHONUNBUFFERED=1 TEXT2SEG_CHECKPOINTS=/checkpoints
# Read by NVIDIA's container runtime, where there is one; on other machines they mean nothing.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER text2seg
WORKDIR /home/text2seg
VOLUME /checkpoints
EXPOSE 7860
# 401 is an answer too: with --auth nobody gets in without a password.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 7860, timeout=8); c.request('GET', '/api/health'); raise SystemExit(c.getresponse().status not in (200, 401))"]
# In here the app listens on all addresses, or no port could be passed on; compose.yaml passes it to loopback only.
ENTRYPOINT ["text2seg"]
CMD ["app", "--host", "0.0.0.0", "--port", "7860"]
