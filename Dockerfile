# JupyterLab with everything in it, for the processor (a graphics card needs the NVIDIA container toolkit and --gpus all).
#   docker build -t cellseg_nb .
#   docker run --rm -p 8888:8888 cellseg_nb
# Instead of JupyterLab, an app as a web page: cells in stacks on http://localhost:8000, for this computer only
# (an app asks for no password):
#   docker run --rm -p 127.0.0.1:8000:8000 cellseg_nb \
#     voila nbs/apps/cells3d.ipynb --Voila.config_file_paths=nbs/apps --Voila.ip=0.0.0.0 --Voila.port=8000
FROM python:3.11-slim

RUN useradd --create-home cellseg
WORKDIR /home/cellseg/cellseg_nb
COPY --chown=cellseg:cellseg . .

# The exact versions stand in environment.yml.
RUN chown cellseg:cellseg . \
 && sed -n 's/^ *- \([a-z0-9-]*==.*\)$/\1/p' environment.yml > /tmp/pins.txt \
 && pip install --no-cache-dir --constraint /tmp/pins.txt -e '.[dev]'

USER cellseg
EXPOSE 8888 8000
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--notebook-dir=nbs"]
