"""A Ray cluster of hosts on one machine: each with a network, process numbers, /tmp and /dev/shm of its own.

    with Cluster(folder) as cluster:            # the network: cluster.gateway is this process's address in it
        cluster.boot(2, environment)            # a head and two workers
        cluster.url, cluster.environment        # the job server, and the token that opens it
        late = cluster.join()                   # a third worker
        late.kill()                             # power off
        cluster.workers[0].cut()                # its network cable

Network namespaces hang on a bridge by veth pairs; the gateway's address reaches what this process listens on. Where
that is not allowed, hosts are Ray nodes beside each other, on addresses of the loopback network. The head has no CPUs,
every worker has one. Hosts end with this process, whatever ends it.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_METRICS_COLLECTION": "0",
    # A silent node counts as dead after some 8 s instead of half a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_worker_niceness": "0",
    "HOME": "/tmp",
    "OMP_NUM_THREADS": "1",
}


def isolation() -> bool:
    """Whether hosts can have networks of their own here, which takes root and a kernel that allows it."""
    if any(shutil.which(program) is None for program in ("ip", "unshare", "mount")):
        return False
    name = f"pb{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    tried = subprocess.run(["ip", "netns", "exec", name, "unshare", "--mount", "--pid", "--fork", "true"], check=False)
    _ip("netns", "del", name)
    return tried.returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


class Host:
    """One host and the `ray start` that runs on it; without a bridge it is no more than a Ray node."""

    def __init__(self, name: str, address: str, bridge: str, log: Path) -> None:
        self.name, self.address, self.log = name, address, log
        self._isolated = bool(bridge)
        self._cable = f"{name}x"
        self._process: subprocess.Popen[bytes] | None = None
        if not self._isolated:
            return
        _ip("netns", "add", name)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", self._cable, "master", bridge, "up")
        for words in (
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *words)

    def start(self, environment: dict[str, str], *words: str) -> None:
        """Starts `ray start` with these words, in namespaces of this host."""
        ray = [str(Path(sys.executable).with_name("ray")), "start", *words, "--node-ip-address", self.address]
        command = ["setpriv", "--pdeathsig", "KILL"]
        if self._isolated:
            script = (
                "mount -t tmpfs tmpfs /tmp && mount -t tmpfs -o size=1g tmpfs /dev/shm && hostname $0 && cd /tmp && "
                f"printf '127.0.0.1 localhost\\n{self.address} %s\\n' $0 > hosts && mount --bind hosts /etc/hosts && "
                'exec "$@"'
            )
            command += ["ip", "netns", "exec", self.name]
            command += ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
            command += ["sh", "-c", script, self.name]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *ray, "--block", "--disable-usage-stats"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def processes(self) -> list[str]:
        """What runs on it: the titles of its processes."""
        titles = []
        for process in self._descendants():
            with contextlib.suppress(psutil.Error):
                titles.append(" ".join(process.cmdline()))
        return titles

    def _descendants(self, recursive: bool = True) -> list[psutil.Process]:
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive) if self.running else []

    def kill(self) -> None:
        """Ends all its processes at once, as a power failure does."""
        if self._process is None:
            return
        # A namespace ends with its first process, for which unshare waits: killed itself, it would leave a zombie.
        below = self._descendants(recursive=not self._isolated)
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not (self._isolated and below):
            self._process.kill()
        self._process.wait(10)

    def cut(self) -> None:
        """Takes it off the network; its processes go on, or without a network of their own stand still."""
        if self._isolated:
            _ip("link", "set", self._cable, "down")
            return
        for process in self._descendants():
            with contextlib.suppress(psutil.Error):
                process.suspend()

    def remove(self) -> None:
        self.kill()
        if self._isolated:
            _ip("netns", "del", self.name)


class Cluster:
    """See the module."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bridge = f"pb{os.getpid()}" if isolation() else ""
        # 198.18 is the range for tests of networks, which nobody routes.
        self._network = f"{'198.18' if self._bridge else '127.18'}.{os.getpid() % 250}"
        self._token = secrets.token_hex(32)
        self._settings: dict[str, str] = {}
        self._hosts: list[Host] = []
        self._shared = ""
        self._port = 6379 if self._bridge else _free_port()

    @property
    def gateway(self) -> str:
        """The address of this process's side, as the hosts reach it."""
        return f"{self._network}.1"

    @property
    def url(self) -> str:
        """The cluster's job server."""
        return f"http://{self.head.address}:8265"

    @property
    def environment(self) -> dict[str, str]:
        """What opens the job server."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}

    @property
    def head(self) -> Host:
        return self._hosts[0]

    @property
    def workers(self) -> list[Host]:
        return [host for host in self._hosts[1:] if host.running]

    def boot(self, workers: int, environment: dict[str, str]) -> None:
        """Starts the head and so many workers, with these variables on every host; returns when all are there."""
        self._settings = environment
        words = ["--head", f"--port={self._port}", "--num-cpus=0", "--object-store-memory=200000000"]
        words += ["--include-dashboard=true", "--dashboard-host=0.0.0.0"]
        if not self._bridge:  # ports and folder beside those of other engines; sockets lie below it: a short name
            self._shared = tempfile.mkdtemp(prefix="pb")
            words[-1] = f"--dashboard-host={self._network}.2"
            words += [f"--temp-dir={self._shared}", f"--ray-client-server-port={_free_port()}"]
        self._add(*words)
        self._until(lambda: self.alive() == 1, 90)
        for _ in range(workers):
            self.join()
            if not self._bridge:  # in one folder they take each other's sockets when they start at once
                self.wait()
        self.wait()

    def join(self) -> Host:
        """Starts one more worker; returns at once."""
        return self._add(
            f"--address={self.head.address}:{self._port}", "--num-cpus=1", "--object-store-memory=150000000"
        )

    def _add(self, *words: str) -> Host:
        number = len(self._hosts)
        name = f"pb{os.getpid()}-{number}"
        host = Host(name, f"{self._network}.{number + 2}", self._bridge, self._folder / f"{name}.log")
        self._hosts.append(host)
        paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        host.start(paths | ENVIRONMENT | self._settings | {"RAY_AUTH_TOKEN": self._token}, *words)
        return host

    def wait(self, seconds: float = 240) -> None:
        """Waits until the cluster knows of every host that runs, and of no other."""
        self._until(lambda: self.alive() == 1 + len(self.workers), seconds)

    def alive(self) -> int:
        """Nodes that the cluster counts as alive."""
        try:
            nodes = self.ask("/nodes?view=summary")["data"]["summary"]
        except (OSError, KeyError):
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def ask(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {self._token}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def _until(self, true: Any, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while not true():
            dead = [host for host in self._hosts[:1] if not host.running]
            if dead or time.monotonic() > ends:
                logs = [f"{host.name}: {host.log.read_text(errors='replace')[-1500:]}" for host in self._hosts]
                raise RuntimeError("the cluster is not as it should be: " + "\n".join(logs))
            time.sleep(0.2)

    def stop(self) -> None:
        for host in reversed(self._hosts):
            host.remove()
        self._hosts = []
        if self._bridge:
            _ip("link", "del", self._bridge)
        else:
            shutil.rmtree(self._shared, ignore_errors=True)

    def __enter__(self) -> Self:
        if self._bridge:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self.gateway}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
