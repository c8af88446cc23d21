"""Servers for tests, started without a service manager and stopped afterwards: a Slurm cluster of one node, and an ssh server."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cellseg_nb.core import claim
from cellseg_nb.run.cluster import read_submission
from cellseg_nb.run.records import record_path

SLURM_TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")


def tool(name: str) -> str | None:
    """Where a program lies; those of administrators are often not in the search path."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(reached, seconds: float = 30, what: str = "it") -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds} s")
        time.sleep(0.1)


def stop(processes: list[subprocess.Popen]) -> None:
    """End servers in the reverse order of their start, with what they started."""
    for one in reversed(processes):
        one.terminate()
        try:
            one.wait(10)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()


def state_of(out: Path, name: str) -> dict:
    """How a piece of a submission stands."""
    try:
        submission = read_submission(out)
        return submission.state(submission.names.index(name))
    except (FileNotFoundError, json.JSONDecodeError):
        return {"state": "none"}


@contextmanager
def held_in(out: Path, name: str):
    """The worker that comes to a picture waits there; gives its process."""

    def at_work() -> dict:
        wait_for(lambda: state_of(out, name)["state"] == "running", 60, f"work on {name}")
        return state_of(out, name)

    with claim(record_path(out, name, ".lock", "segment"), out):
        yield at_work


SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
MpiDefault=none
ReturnToService=2
KillWait=2
InactiveLimit=0
MinJobAge=300
SlurmdTimeout=30
NodeName={host} NodeAddr={address} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
"""


@dataclass
class SlurmCluster:
    """A cluster of one node: this computer."""

    folder: Path
    processes: list[subprocess.Popen]

    @property
    def variables(self) -> dict[str, str]:
        """What programs need to find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def stop(self) -> None:
        """End jobs that a failed test left, then the servers."""
        subprocess.run(
            ["scancel", f"--user={getpass.getuser()}"], env=os.environ | self.variables, capture_output=True, timeout=20
        )
        try:
            wait_for(lambda: not self.ask("squeue", "--noheader").strip(), 15, "the end of all jobs")
        finally:
            stop(self.processes)

    def ask(self, *words: str) -> str:
        return subprocess.run(words, env=os.environ | self.variables, capture_output=True, text=True, check=True).stdout


def why_no_slurm() -> str:
    """Why a cluster cannot be started here; empty = it can."""
    missing = [name for name in SLURM_TOOLS if tool(name) is None]
    if missing:
        return f"Slurm is not installed: no {missing[0]}"
    return "" if os.geteuid() == 0 else "a Slurm cluster is started by root only"


def start_slurm(folder: Path) -> SlurmCluster:
    """Start munge, the controller and one node."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key, port = folder / "munge.key", {"controller": free_port(), "node": free_port()}
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    about = {
        "host": socket.gethostname().split(".")[0],
        "address": "127.0.0.1",
        "user": getpass.getuser(),
        "cpus": os.cpu_count(),
    }
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, **about, **port))
    cluster, files = (
        SlurmCluster(folder, []),
        [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")],
    )
    commands = [
        [tool("munged"), "--foreground", "--force", f"--socket={folder}/munge.socket", *files],
        [tool("slurmctld"), "-D", "-f", f"{folder}/slurm.conf"],
        [tool("slurmd"), "-D", "-f", f"{folder}/slurm.conf", "-N", about["host"]],
    ]
    try:
        for command in commands:
            with open(folder / f"{Path(command[0]).name}.out", "w") as out:
                cluster.processes.append(subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True))
            if command is commands[0]:
                wait_for((folder / "munge.socket").exists, what="munge")
        wait_for(lambda: _ready(cluster), what="the Slurm node")
    except BaseException:
        stop(cluster.processes)
        raise
    return cluster


def _ready(cluster: SlurmCluster) -> bool:
    try:
        return cluster.ask("sinfo", "--noheader", "--format=%T").strip() == "idle"
    except subprocess.CalledProcessError:
        return False


SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv {variables}
"""
SSH_CONFIG = """
Host lab
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
Host stranger
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/no_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
"""


@dataclass
class SshServer:
    """An ssh server with keys of its own."""

    folder: Path
    home: Path  # what those who log in take for their home
    processes: list[subprocess.Popen]

    @property
    def ssh(self) -> str:
        """How it is called: hosts are lab, and stranger, who has no right."""
        return f"ssh -F {self.folder}/ssh_config"

    def break_lines(self, asking: str) -> int:
        """End all connections on which something is asked, not the server; how many there were."""
        found = 0
        for line in _children(self.processes[0].pid):
            if any(f" {asking} " in told for told in _children(line).values()):
                found += 1
                for pid in (*_children(line), line):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        return found


def _children(pid: int) -> dict[int, str]:
    """Processes that another one started, and their words."""
    asked = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)]
    lines = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
    return {int(line.split()[0]): line for line in lines}


def why_no_ssh() -> str:
    """Why a server cannot be started here; empty = it can."""
    missing = [name for name in ("sshd", "ssh", "ssh-keygen") if tool(name) is None]
    if missing:
        return f"OpenSSH is not installed: no {missing[0]}"
    return "" if os.geteuid() == 0 else "an ssh server is started by root only"


def start_ssh(folder: Path) -> SshServer:
    """Start an ssh server on a free port of this computer."""
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd asks for it
    for name in ("host_key", "user_key", "no_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    home, port = folder / "home", free_port()
    home.mkdir()
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    names = ("PYTHONPATH", "CELLSEG_DATA", "OMP_NUM_THREADS", "CELLSEG_TEST_OF", "MPLBACKEND")
    variables = {name: os.environ[name] for name in names if name in os.environ} | {"HOME": str(home)}
    about = {
        "folder": folder,
        "port": port,
        "user": getpass.getuser(),
        "variables": " ".join(f"{name}={value}" for name, value in variables.items()),
    }
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(**about))
    (folder / "ssh_config").write_text(SSH_CONFIG.format(**about))
    server = SshServer(folder, home, [])
    with open(folder / "sshd.log", "w") as log:
        server.processes.append(
            subprocess.Popen([tool("sshd"), "-D", "-e", "-f", f"{folder}/sshd_config"], stdout=log, stderr=log)
        )
    try:
        wait_for(lambda: _answers(port), what="the ssh server")
    except BaseException:
        stop(server.processes)
        raise
    return server


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as one:
            return one.recv(3) == b"SSH"
    except OSError:
        return False
