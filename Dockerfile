# Three images of one package, for the processor (a graphics card needs the NVIDIA container toolkit and --gpus all).
#
# predict: the service, see cellseg_nb/run/service/deploy/README.md
#   docker build --target predict -t cellseg_nb:predict .
#   docker run --rm -p 127.0.0.1:8000:8000 -e CELLSEG_TOKEN=$(openssl rand -hex 24) -v cellseg:/data cellseg_nb:predict
#
# train: training from a configuration, into a folder of this computer; the same image trains in SageMaker, which starts it with
# the word train (see nbs/run/23_sagemaker.ipynb), and serves on ECS (cellseg_nb/run/service/deploy/ecs-task.json)
#   docker build --target train -t cellseg_nb:train .
#   docker run --rm -v "$PWD/runs:/work" cellseg_nb:train cellseg train nuclei --out runs/nuclei
# Where the folders below /opt/ml belong to root and nobody else may write there: --build-arg RUN_AS=root
#
# lab: JupyterLab with everything in it
#   docker build -t cellseg_nb .
#   docker run --rm -p 8888:8888 cellseg_nb
# Instead of JupyterLab, an app as a web page: cells in stacks on http://localhost:8000, for this computer only
# (an app asks for no password):
#   docker run --rm -p 127.0.0.1:8000:8000 cellseg_nb \
#     voila nbs/apps/cells3d.ipynb --Voila.config_file_paths=nbs/apps --Voila.ip=0.0.0.0 --Voila.port=8000
FROM python:3.11-slim AS base

RUN useradd --create-home cellseg \
 && mkdir /data /work \
 && chown cellseg:cellseg /data /work
WORKDIR /home/cellseg/cellseg_nb
COPY --chown=cellseg:cellseg . .

# The exact versions stand in environment.yml.
RUN chown cellseg:cellseg . \
 && sed -n 's/^ *- \([a-z0-9-]*==.*\)$/\1/p' environment.yml > /tmp/pins.txt


FROM base AS predict
RUN pip install --no-cache-dir --constraint /tmp/pins.txt '.[service]'
USER cellseg
WORKDIR /work
ENV OMP_NUM_THREADS=1 NUMBA_CACHE_DIR=/tmp/numba
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Other computers reach a container, so this refuses to start without CELLSEG_TOKEN.
CMD ["cellseg", "serve", "--host", "0.0.0.0", "--data", "/data"]


FROM base AS train
RUN pip install --no-cache-dir --constraint /tmp/pins.txt '.[service,s3,monai,tensorflow,pipelines]'
RUN printf '#!/bin/sh\nexec cellseg sagemaker train "$@"\n' > /usr/local/bin/train \
 && chmod 755 /usr/local/bin/train \
 && mkdir -p /opt/ml \
 && chown cellseg:cellseg /opt/ml
ARG RUN_AS=cellseg
USER ${RUN_AS}
WORKDIR /work
ENV OMP_NUM_THREADS=1 NUMBA_CACHE_DIR=/tmp/numba
VOLUME /work
CMD ["cellseg", "--help"]


FROM base AS lab
RUN pip install --no-cache-dir --constraint /tmp/pins.txt -e '.[dev]'
USER cellseg
EXPOSE 8888 8000
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--notebook-dir=nbs"]
