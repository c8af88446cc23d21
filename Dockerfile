# JupyterLab with everything in it, for the processor (a graphics card needs the NVIDIA container toolkit and --gpus all).
#   docker build -t cellseg_nb .
#   docker run --rm -p 8888:8888 cellseg_nb
FROM python:3.11-slim

RUN useradd --create-home cellseg
WORKDIR /home/cellseg/cellseg_nb
COPY --chown=cellseg:cellseg . .

# The exact versions stand in environment.yml.
RUN chown cellseg:cellseg . \
 && sed -n 's/^ *- \([a-z0-9-]*==.*\)$/\1/p' environment.yml > /tmp/pins.txt \
 && pip install --no-cache-dir --constraint /tmp/pins.txt -e '.[dev]'

USER cellseg
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--notebook-dir=nbs"]
