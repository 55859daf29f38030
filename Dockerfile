# CPU image:  docker build -t sharp-demo .
# CUDA image: docker build -t sharp-demo --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
#             then docker run --gpus all ...; the driver on the host is enough, the wheels bring the CUDA libraries.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The URL of a flash-attn release wheel for this torch, CUDA and Python (requirements-gpu.txt); empty: SDPA.
ARG FLASH_ATTN_WHEEL=""
RUN python -m venv /opt/venv
COPY requirements.txt .
RUN /opt/venv/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -r requirements.txt
RUN if [ -n "$FLASH_ATTN_WHEEL" ]; then /opt/venv/bin/pip install --no-cache-dir "$FLASH_ATTN_WHEEL"; fi

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 user
COPY --from=build /opt/venv /opt/venv
WORKDIR /home/user/app
COPY --chown=user app.py README.md ./
COPY --chown=user sharp_demo sharp_demo
COPY --chown=user assets assets
USER user
ENV PATH=/opt/venv/bin:$PATH \
    HF_HOME=/home/user/.cache/huggingface \
    PYTHONUNBUFFERED=1 \
    SHARP_HOST=0.0.0.0 \
    SHARP_PORT=7860
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/gradio_api/startup-events', timeout=4)"]
CMD ["python", "app.py"]
