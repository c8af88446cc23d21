"""The service: kills at any moment, three kinds of queues, hostile and slow clients, the page in a browser, the files to deploy it."""

import io
import json
import shutil
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
import yaml
from fastapi.testclient import TestClient
from PIL import Image as Picture
from test_app import CHROMIUM, browser_page

sys.path.insert(0, str(Path(__file__).resolve().parent / "experiments"))
from service import LIMITS, Load, Server, attack, picture, queue_of, until  # noqa: E402

from cellseg_nb.data.simulate import simulate_nuclei  # noqa: E402
from cellseg_nb.run.service import connection, worker  # noqa: E402
from cellseg_nb.run.service.app import make_app  # noqa: E402
from cellseg_nb.run.service.keeper import Keeper, Sweeper, forget  # noqa: E402
from cellseg_nb.run.service.limits import ServeSettings  # noqa: E402
from cellseg_nb.run.service.places import Wake, open_place  # noqa: E402
from cellseg_nb.run.service.records import check_records  # noqa: E402
from cellseg_nb.run.service.states import Record, claimed, ended  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PNG = {"Content-Type": "image/png"}
needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed (apt install redis-server)"
)
QUEUES = ["sqlite", pytest.param("redis", marks=needs_redis), "sqs"]


@pytest.fixture(scope="module")
def queues(tmp_path_factory):
    """Redis and moto are started once, when they are first asked for."""
    with ExitStack() as stack:
        known = {}

        def of(kind):
            if kind not in known:
                known[kind] = stack.enter_context(queue_of(kind, tmp_path_factory.mktemp(kind)))
            return known[kind]

        yield of


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("served"), **LIMITS) as server:
        yield server


@pytest.fixture
def place(tmp_path):
    return open_place(ServeSettings(data=tmp_path / "data", lease_seconds=1, attempts=2))


def post(place, id="one", seed=0):
    """A task right in the place."""
    path = place.scratch / f"upload-{id}"
    path.write_bytes(picture(seed)[1])
    place.files.keep_upload(id, "image.png", path)
    now = time.time()
    place.records.add(Record(id=id, task="segment", model=["otsu"], created=now, changed=now), 99)
    place.queue.put(id)


def finished(url, here):
    """A task when it has ended."""
    return until(lambda: (told := httpx.get(url + here).json())["status"] in ("FINISHED", "FAILED") and told)


# A session


def test_an_image_becomes_a_mask_and_tables(server):
    _, content, count = picture(3)
    answer = httpx.post(f"{server.url}/tasks?model=otsu", content=content, headers=PNG)
    assert answer.status_code == 201 and answer.json()["status"] == "QUEUED"
    told = finished(server.url, answer.headers["location"])
    assert (told["status"], told["found"]["count"], told["attempts"]) == ("FINISHED", count, 1)
    mask = httpx.get(server.url + told["links"]["mask"])
    assert mask.headers["content-type"] == "image/png"
    assert np.asarray(Picture.open(io.BytesIO(mask.content))).max() == count
    objects = httpx.get(server.url + told["links"]["tables"]["objects"]).text
    assert len(objects.splitlines()) == count + 1
    for address in told["links"]["files"].values():
        answer = httpx.get(server.url + address)
        assert answer.status_code == 200 and str(server.folder).encode() not in answer.content, address


def test_any_task_is_served(server):
    pixels = simulate_nuclei((128, 128), 9, seed=2)[0].astype(np.uint8)
    file = io.BytesIO()
    Picture.fromarray(pixels).save(file, "png")
    form = {"data": {"task": "count", "tile_px": "128"}, "files": {"file": ("my cells.png", file.getvalue())}}
    told = finished(server.url, httpx.post(f"{server.url}/tasks", **form).headers["location"])
    assert told["status"] == "FINISHED" and told["settings"] == {"tile_px": 128}
    assert told["found"]["count"] > 1 and {"counts", "points"} <= set(told["links"]["tables"])
    assert httpx.get(f"{server.url}/masks/{told['id']}").status_code == 404  # it makes none


def test_a_task_that_cannot_be_done_says_why(server):
    content = picture(0)[1]
    answer = httpx.post(f"{server.url}/tasks?task=count&model=otsu", content=content, headers=PNG)
    told = finished(server.url, answer.headers["location"])
    assert told["status"] == "FAILED" and "otsu" in told["error"] and "\n" not in told["error"]
    assert httpx.get(f"{server.url}/masks/{told['id']}").status_code == 409


def test_hostile_uploads_are_refused_and_the_service_is_well(server):
    statuses = attack(server.url)
    assert len(statuses) >= 30
    assert not (taken := {name: code for name, code in statuses.items() if not 400 <= code < 500}), taken
    health = httpx.get(f"{server.url}/health").json()
    assert (health["status"], health["open_tasks"], health["workers"]) == ("ok", 0, 1)
    assert not [*(server.folder / "data/scratch").iterdir()]  # nothing is left of them
    assert "Traceback" not in server.said


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_person_uploads_an_image(server, tmp_path):
    _, content, count = picture(5)
    (tmp_path / "cells.png").write_bytes(content)
    with browser_page() as page:
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.goto(server.url.replace("127.0.0.1", "localhost"))
        page.locator("#settings label").first.wait_for(state="attached")
        page.locator("#model").fill("otsu")
        page.locator("#file").set_input_files(str(tmp_path / "cells.png"))
        page.get_by_role("button", name="Send").click()
        page.locator("td.FINISHED").wait_for()
        assert page.locator("#rows td").nth(2).inner_text() == str(count)
        page.locator("#rows img").wait_for()
        with page.expect_download() as download:
            page.get_by_role("button", name="objects.csv").click()
        assert len(Path(download.value.path()).read_text().splitlines()) == count + 1
        page.get_by_role("button", name="delete").click()
        until(lambda: page.locator("#rows tr").count() == 0)
        page.goto(server.url.replace("127.0.0.1", "localhost") + "/docs")
        page.get_by_text("DELETE /tasks/{id}").wait_for()
        assert not problems


# Kills


@pytest.mark.parametrize("kind", QUEUES)
def test_tasks_outlive_kills_of_worker_and_server(kind, queues, tmp_path):
    queue, variables = queues(kind)
    server = Server(tmp_path, queue, variables, attempts=9)
    load = Load(server.url, 8, 4, n_pictures=4)

    def meanwhile():
        until(lambda: len(load.done) >= 1)
        server.kill_worker()
        until(lambda: len(load.done) >= 3)
        if kind == "sqlite":  # the other kinds of records do not lie with the server
            server.kill()
            server.start()

    with server:
        figures = load.run(meanwhile)
    assert (figures["finished"], figures["failed"], figures["lost"], figures["wrong"]) == (8, 0, 0, 0), figures
    assert not figures["errors"]
    if kind != "sqs":
        place = open_place(ServeSettings(data=tmp_path / "data", queue=queue))
        assert not place.records.open()
        assert all(len(place.files.claims(id)) == 1 for id in place.files.ids(time.time() + 9))


def test_a_task_that_kills_its_workers_has_failed(place, monkeypatch):
    post(place, "deadly")
    deadly = (
        "import os; from cellseg_nb.run.service import worker; worker.compute = lambda *_: os._exit(11); worker.main()"
    )
    monkeypatch.setattr("cellseg_nb.run.service.keeper.WORKER", deadly)
    with Keeper(place, 1):
        until(lambda: not place.records.get("deadly").is_open)
    record = place.records.get("deadly")
    assert (record.status, record.attempts) == ("FAILED", 2)
    assert record.error == "given up after 2 attempts: each time its worker ended or was silent"


def test_stopping_puts_a_task_back(place, monkeypatch):
    post(place, "slow")
    slow = (
        "import time; from cellseg_nb.run.service import worker; worker.GRACE_S = 0.2; "
        "worker.compute = lambda *_: time.sleep(600); worker.main()"
    )
    monkeypatch.setattr("cellseg_nb.run.service.keeper.WORKER", slow)
    with Keeper(place, 1):
        until(lambda: place.records.get("slow").status == "PROCESSING")
        held = place.records.get("slow").lease_until
        until(lambda: place.records.get("slow").lease_until > held)  # it is renewed meanwhile
    record = place.records.get("slow")
    assert (record.status, record.attempts) == ("QUEUED", 0)  # it is not the task's fault
    assert place.queue.take(0).id == "slow" and not [*place.scratch.iterdir()]


def test_a_task_that_takes_too_long_has_failed(place, monkeypatch):
    class Ended(Exception):
        pass

    left = []
    monkeypatch.setattr(worker.os, "_exit", lambda code: left.append(code))
    monkeypatch.setattr(worker, "compute", lambda *_: until(lambda: left, 20))
    place.settings = place.settings.model_copy(update={"task_seconds": 0.3})
    post(place, "long")
    worker.take(place, place.queue.take(0), "w")
    record = place.records.get("long")
    assert (record.status, record.error) == ("FAILED", "it took longer than 0.3 s, the limit of this service")
    assert left[0] == 3  # the process ends: what computes cannot be stopped


def test_a_worker_does_not_go_on_with_a_task_that_was_deleted(place, monkeypatch):
    left = []
    monkeypatch.setattr(worker.os, "_exit", lambda code: left.append(code))
    monkeypatch.setattr(worker, "LOST_S", 0.2)

    def endless(*_):
        assert forget(place, "gone", time.time())
        return until(lambda: left, 60)  # far less than the limit of a task

    monkeypatch.setattr(worker, "compute", endless)
    post(place, "gone")
    worker.take(place, place.queue.take(0), "w")
    assert left[0] == 3 and place.records.read("gone") is None and not [*place.scratch.iterdir()]


def test_results_that_cannot_be_stored_are_made_again(place, monkeypatch):
    post(place)
    keep, tries = place.files.keep_results, []

    def full(*given):
        tries.append(given)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        keep(*given)

    monkeypatch.setattr(place.files, "keep_results", full)
    worker.take(place, place.queue.take(0), "w")
    assert place.records.get("one").status == "QUEUED"
    worker.take(place, place.queue.take(0), "w")  # it was put back into the queue
    assert (place.records.get("one").status, place.records.get("one").attempts) == ("FINISHED", 2)


def test_a_worker_that_was_thought_dead_changes_nothing(place, monkeypatch):
    post(place)
    monkeypatch.setattr(worker, "LOST_S", 999)  # the process of the tests does not end
    real = worker.compute

    def paused(task, image):
        """Meanwhile another one takes the task, and finishes it."""
        monkeypatch.setattr(worker, "compute", real)
        now = time.time() + 99
        place.records.change("one", lambda one: claimed(one, "other", "other", now, 30, 3))
        (place.files.tasks / "one" / "other").mkdir()
        place.records.change("one", lambda one: ended(one, "other", now, found={"count": 77}))
        return real(task, image)

    monkeypatch.setattr(worker, "compute", paused)
    worker.take(place, place.queue.take(0), "w")
    record = place.records.get("one")
    assert (record.status, record.found, record.claim) == ("FINISHED", {"count": 77}, "other")
    assert place.files.claims("one") == ["other"]


def test_everything_is_deleted_after_its_time(place):
    post(place)
    worker.take(place, place.queue.take(0), "w")
    (place.files.tasks / "orphan").mkdir()
    (place.scratch / "upload-x").touch()
    Sweeper(place).sweep(time.time() + 3600 * 30)
    assert place.records.read("one") is None
    assert not [*place.files.tasks.iterdir()] and not [*place.scratch.iterdir()]
    assert not forget(place, "one", time.time())


# Storages


@pytest.mark.parametrize("kind", QUEUES[1:])
def test_storages_keep_their_promises(kind, queues, tmp_path, monkeypatch):
    queue, variables = queues(kind)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    queue = (
        f"{queue.removesuffix('/0')}/5" if kind == "redis" else queue.replace("//tasks", "//alone") + "&prefix=alone/"
    )
    place = open_place(ServeSettings(data=tmp_path, queue=queue))
    check_records(place.records, wait=1.0 if kind == "sqs" else 0.0)
    now, won = time.time(), []
    for id in place.records.open():
        place.records.drop(id)
    place.records.add(Record(id="race", task="segment", created=now, changed=now), 9)

    def race(k):
        how = lambda one: claimed(one, f"c{k}", "w", now, 30, 3)  # noqa: E731
        won.extend([k] * (place.records.change("race", how) is not None))

    threads = [threading.Thread(target=race, args=(k,)) for k in range(6)]
    for step in (threading.Thread.start, threading.Thread.join):
        for one in threads:
            step(one)
    assert len(won) == 1 and place.records.get("race").claim == f"c{won[0]}"
    place.queue.put("race")
    wake = place.queue.take(5)
    assert wake.id == "race" and place.queue.take(0) is None
    wake.done()


def test_a_message_that_is_none_does_not_stop_a_worker(place):
    assert not worker.take(place, Wake("no such task"), "w")


# Clients


def test_only_who_knows_the_token_sees_tasks(tmp_path):
    place = open_place(ServeSettings(data=tmp_path, token="a long word that is known"))
    client = TestClient(make_app(place), base_url="http://localhost")
    here = "/tasks/12345678-1234-4234-8234-123456789abc"
    for asked in (
        lambda **how: client.get(here, **how),
        lambda **how: client.delete(here, **how),
        lambda **how: client.post("/tasks", **how),
    ):
        assert asked().status_code == 401 and asked().headers["www-authenticate"] == "Bearer"
        assert asked(headers={"Authorization": "Bearer a long word that is not"}).status_code == 401
    assert client.get(here, headers={"Authorization": "Bearer a long word that is known"}).status_code == 404
    assert client.get("/").status_code == client.get("/health").status_code == 200


@contextmanager
def listening(app):
    """An application behind patient connections, in a thread."""
    config = uvicorn.Config(app, http=connection.Patient, ws="none", lifespan="off", log_level="critical")
    served = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=served.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            until(lambda: served.started)
            yield door.getsockname()[1]
        finally:
            served.should_exit = True
            thread.join()


async def endless(scope, receive, send):
    """Send more than any buffer takes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(400):
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=["nothing", "half a head"])
def test_who_sends_no_head_is_cut_off(sent, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    with listening(endless) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(sent)
        assert client.recv(10) == b""


async def brief(scope, receive, send):
    """Answer without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("length, closed", [(10, True), (2, False)], ids=["kept back", "sent"])
def test_who_keeps_a_body_back_after_the_answer_is_cut_off(length, closed, monkeypatch):
    monkeypatch.setattr(connection, "REST_S", 0.5)
    request = f"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
    with listening(brief) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(request)
        assert until(lambda: client.recv(1000)).endswith(b"ok")
        client.sendall(b"x")  # this stops the clock of uvicorn
        if closed:
            assert client.recv(10) == b""
            return
        client.sendall(b"x" + request)  # the body is complete: the connection goes on
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_who_does_not_read_is_cut_off(monkeypatch):
    monkeypatch.setattr(connection, "STALL_S", 0.3)
    with listening(endless) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1)
        read, error = 0, None
        try:
            while block := client.recv(1 << 20):
                read += len(block)
        except OSError as reset:
            error = reset
        assert read < 400 << 20 and (error or read >= 0)


# Deployment


def deploy(name: str) -> str:
    return (ROOT / "cellseg_nb/run/service/deploy" / name).read_text(encoding="utf-8")


def test_container_has_its_stages():
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    stages = [line.split(" AS ")[1] for line in lines if line.startswith("FROM")]
    assert stages == ["base", "predict", "train", "lab"]  # the last is what `docker build .` makes
    assert sum(line.startswith("CMD") or line.startswith("ENTRYPOINT") for line in lines) == 3
    assert sum(line == "USER cellseg" for line in lines) == 2  # none runs as root, but for who asks for it
    assert lines[lines.index("ARG RUN_AS=cellseg") + 1] == "USER ${RUN_AS}"


def test_compose_file_fits_the_command():
    made = yaml.safe_load(deploy("compose.yml"))
    services = made["services"]
    assert set(services) == {"redis", "http", "workers"}
    assert services["redis"]["command"][-4:] == ["--appendonly", "yes", "--appendfsync", "always"]
    for name in ("http", "workers"):
        assert services[name]["build"]["target"] == "predict"
        _options_are_known(services[name]["command"])
    assert services["http"]["ports"] == ["127.0.0.1:8000:8000"]


def test_task_definition_fits_the_command():
    made = json.loads(deploy("ecs-task.json"))
    assert {one["name"] for one in made["containerDefinitions"]} == {"http", "workers"}
    for one in made["containerDefinitions"]:
        _options_are_known(one["command"])
        assert all(secret["valueFrom"].startswith("arn:aws:") for secret in one.get("secrets", ()))
        assert not any("TOKEN" in variable["name"] for variable in one.get("environment", ()))


def _options_are_known(words):
    """Whether `cellseg serve` would take these words, but for what is to be filled in."""
    assert words[:2] == ["cellseg", "serve"] or words[0] == "serve", words
    options = words[words.index("serve") + 1 :]
    names = [word[2:].replace("-", "_") for word in options if word.startswith("--")]
    given = {name: options[options.index(f"--{name.replace('_', '-')}") + 1] for name in names}
    ServeSettings.checked(**given | {"token": "x" * 20})
