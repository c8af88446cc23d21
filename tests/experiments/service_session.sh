#!/usr/bin/env bash
# A session with the service, with curl: post, poll, fetch; kill -9 in the middle; start it again.
#   tests/experiments/service_session.sh [--queue ADDRESS]
set -euo pipefail
folder=$(mktemp -d)
port=$(python -c 'import socket; one = socket.create_server(("127.0.0.1", 0)); print(one.getsockname()[1])')
url=http://127.0.0.1:$port
trap 'kill $server; wait $server 2> /dev/null || true; rm -rf "$folder"' EXIT
shown() { printf '\n$ %s\n' "$*"; }

start() {
  shown cellseg serve --data data --lease-seconds 3 "$@" '&'
  (cd "$folder" && exec cellseg serve --port "$port" --data data --lease-seconds 3 "$@") 2>> "$folder/log" &
  server=$!
  until curl -sf "$url/health" > /dev/null; do sleep 0.2; done
  curl -s "$url/health"; echo
}

post() { # file, query -> name of the task
  curl -si -H 'Expect:' --data-binary "@$folder/$1" -H 'Content-Type: image/png' "$url/tasks?$2" > "$folder/answer"
  sed -n 's/\r$//; 1p; /^[Ll]ocation/p' "$folder/answer" >&2
  sed -n 's/\r$//; s/^[Ll]ocation: //p' "$folder/answer"
}

state() { curl -s "$url$1" | python -c 'import json, sys; told = json.load(sys.stdin); print(told["status"], {key: told["found"].get(key) for key in ("count",) if told["found"]} or "", told["error"] or "", "attempts", told["attempts"])'; }

python - "$folder" <<'PYTHON'
import sys
import numpy as np
from cellseg_nb.data.io import write_image
from cellseg_nb.data.simulate import simulate_nuclei
write_image(f"{sys.argv[1]}/cells.png", simulate_nuclei((256, 256), 20, seed=1)[0].astype("uint8"), "YX")
write_image(f"{sys.argv[1]}/large.png", np.tile(simulate_nuclei((512, 512), 60, seed=2)[0].astype("uint8"), (6, 6)), "YX")
PYTHON

start "$@"
shown "curl -i --data-binary @cells.png -H 'Content-Type: image/png' '$url/tasks?model=otsu'"
task=$(post cells.png model=otsu)
shown "curl $url$task   # until it is FINISHED"
until state "$task" | tee -a "$folder/states" | grep -q 'FINISHED\|FAILED'; do sleep 0.3; done
uniq "$folder/states"
shown "curl $url/masks/... -o mask.png; curl -H 'Accept: image/tiff' ... -o mask.tif"
id=${task#/tasks/}
curl -s "$url/masks/$id" -o "$folder/mask.png"
curl -s -H 'Accept: image/tiff' "$url/masks/$id" -o "$folder/mask.tif"
(cd "$folder" && file mask.png mask.tif | cut -c 1-100)
shown "curl $url$task/files/objects.csv | head -n 3"
curl -s "$url$task/files/objects.csv" | head -n 3 | cut -c 1-110

shown "# four large images; the server and all that belongs to it are killed while the first is worked on"
tasks=()
for _ in 1 2 3 4; do tasks+=("$(post large.png model=otsu)"); done
until curl -s "$url${tasks[0]}" | grep -q PROCESSING; do sleep 0.02; done
shown "kill -9 $server"
children=$(cat /proc/$server/task/*/children)
kill -9 "$server" $children
wait "$server" 2> /dev/null || true
curl -s -m 2 "$url/health" || echo "nobody answers (curl: $?)"
start "$@"
for one in "${tasks[@]}"; do state "$one"; done
shown "# later"
for one in "${tasks[@]}"; do
  until state "$one" | grep -q 'FINISHED\|FAILED'; do sleep 0.3; done
  state "$one"
done
shown "curl -X DELETE $url$task; curl $url$task"
curl -s -o /dev/null -w '%{http_code}\n' -X DELETE "$url$task"
curl -s "$url$task"; echo
shown "curl --data-binary 'no image' ..."
curl -s --data-binary 'no image' -H 'Content-Type: image/png' "$url/tasks?model=otsu"; echo
shown "what the service said"
sed 's/^/  /' "$folder/log"
