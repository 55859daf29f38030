# CPU:  docker build -t sharp-demo .
# CUDA: docker build -t sharp-demo --build-arg TORCH=cu130 .     then docker run --gpus all ...; the driver on the host is
#       enough, the wheels bring the CUDA libraries. More in docs/deploy.md.
FROM python:3.12-slim-bookworm AS build
# Which of https://download.pytorch.org/whl/ torch comes from: cpu, cu126, cu128, cu130.
ARG TORCH=cpu
# Another torch than constraints.txt names, for instance one that flash-attn has a wheel for; empty: the tested one.
ARG TORCH_VERSION=""
# A flash-attn release, for instance 2.8.3; the wheel for this torch, CUDA and Python is taken, nothing is compiled.
ARG FLASH_ATTN=""
# 0: an image that may be passed on, because decord's wheel may not be (docs/licences.md); PyAV decodes instead.
ARG DECORD=1
WORKDIR /build
COPY requirements.txt constraints.txt tools/flash_attn_wheel.py ./
RUN python -m venv /opt/venv \
    && if [ -n "$TORCH_VERSION" ]; then sed -i "s/^torch==.*/torch==$TORCH_VERSION/" constraints.txt; fi \
    && if [ "$DECORD" = 0 ]; then sed -i "/^decord/d" requirements.txt; fi \
    && /opt/venv/bin/pip install --no-cache-dir --extra-index-url "https://download.pytorch.org/whl/$TORCH" \
        -c constraints.txt -r requirements.txt
RUN if [ -n "$FLASH_ATTN" ]; then \
        wheel=$(/opt/venv/bin/python flash_attn_wheel.py "$FLASH_ATTN") \
        && /opt/venv/bin/pip install --no-cache-dir --only-binary :all: -c constraints.txt "$wheel"; \
    fi

FROM python:3.12-slim-bookworm
RUN useradd --create-home --uid 1000 user \
    && install -d -o user -g user /home/user/app /home/user/.cache /home/user/.cache/huggingface
COPY --from=build /opt/venv /opt/venv
WORKDIR /home/user/app
COPY --chown=1000:1000 app.py README.md LICENSE ./
COPY --chown=1000:1000 sharp_demo sharp_demo
COPY --chown=1000:1000 assets assets
USER 1000
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/user \
    HF_HOME=/home/user/.cache/huggingface \
    PYTHONUNBUFFERED=1 \
    SHARP_HOST=0.0.0.0 \
    SHARP_PORT=7860
VOLUME /home/user/.cache/huggingface
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"SHARP_PORT\"]}/healthz', timeout=4)"]
CMD ["python", "app.py"]
