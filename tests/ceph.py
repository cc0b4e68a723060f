"""A real S3 store on loopback: Ceph's monitor, one storage daemon in memory and the RADOS Gateway.

    with Ceph(folder) as store:
        store.url, store.access_key, store.secret_key

From Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common. Everything lies in one folder, listens on free ports
of 127.0.0.1, and ends with `stop`. It is a store for tests: no replication, no authentication between its daemons.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def environment(endpoint: str, access_key: str = "test", secret_key: str = "testtest") -> dict[str, str]:
    """The variables that lead the standard chain to a store of the tests."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


class Ceph:
    """One store; `start` returns when it answers, after some 15 s."""

    access_key = "access-of-the-tests"
    secret_key = "secret-of-the-tests"

    def __init__(self, folder: Path, *, seconds: float = 60) -> None:
        self.folder = folder
        self._deadline = time.monotonic() + seconds
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._v2, self._v1, self._port = _free_ports(3)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead the standard chain here."""
        return environment(self.url, self.access_key, self.secret_key)

    def start(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        for name in ("mon", "osd", "rgw", "run"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "keyring").touch()
        monitor = f"[v2:127.0.0.1:{self._v2},v1:127.0.0.1:{self._v1}]"
        fsid, disk = str(uuid.uuid4()), str(uuid.uuid4())
        (self.folder / "ceph.conf").write_text(self._configuration(fsid, monitor))
        monmap = self.folder / "monmap"
        self._call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, str(monmap), configured=False)
        self._call("ceph-mon", "--id", "a", "--mkfs", "--monmap", str(monmap))
        self._serve("ceph-mon", "--id", "a")
        self._call("ceph", "osd", "new", disk)
        self._call("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", disk)
        self._serve("ceph-osd", "--id", "0")
        self._call(
            "radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests",
            f"--access-key={self.access_key}", f"--secret-key={self.secret_key}",
        )  # fmt: skip
        self._serve("radosgw", "--name", "client.rgw")
        while not self._answers():
            time.sleep(0.1)

    def _configuration(self, fsid: str, monitor: str) -> str:
        everywhere = {
            "fsid": fsid,
            "mon host": monitor,
            "public network": "127.0.0.0/8",
            "public addr": "127.0.0.1",
            "auth cluster required": "none",
            "auth service required": "none",
            "auth client required": "none",
            "auth allow insecure global id reclaim": "true",
            **{
                f"ms {way} mode": "crc"
                for way in ("cluster", "service", "client", "mon cluster", "mon service", "mon client")
            },
            "osd pool default size": 1,
            "osd pool default min size": 1,
            "osd pool default pg num": 4,
            "osd pool default pg autoscale mode": "off",
            "osd crush chooseleaf type": 0,
            "mon allow pool size one": "true",
            "mon max pg per osd": 1000,
            "mon data avail warn": 1,
            "mon data avail crit": 0,
            "keyring": self.folder / "keyring",
            "run dir": self.folder / "run",
            "admin socket": "",
            "log to stderr": "true",
            "log file": "",
            "mon cluster log file": "",
            "crash dir": self.folder / "run",
        }
        monitor_only = {"mon data": self.folder / "mon", "mon initial members": "a"}
        disk = {"osd data": self.folder / "osd", "osd objectstore": "memstore", "memstore device bytes": 4 << 30}
        gateway = {
            "rgw frontends": f"beast endpoint=127.0.0.1:{self._port} tcp_nodelay=1",
            "rgw data": self.folder / "rgw",
            "rgw thread pool size": 64,
        }
        sections = {"global": everywhere, "mon.a": monitor_only, "osd.0": disk, "client.rgw": gateway}
        lines = []
        for name, options in sections.items():
            lines += [f"[{name}]", *(f"{key} = {value}" for key, value in options.items())]
        return "\n".join(lines) + "\n"

    def _call(self, program: str, *arguments: str, configured: bool = True) -> None:
        """Runs a program to its end."""
        where = ["--conf", str(self.folder / "ceph.conf")] if configured else []
        with (self.folder / "log").open("ab") as log:
            left = max(1.0, self._deadline - time.monotonic())
            subprocess.run([program, *where, *arguments], stdout=log, stderr=log, check=True, timeout=left)

    def _serve(self, program: str, *arguments: str) -> None:
        """Starts a daemon as our child, so that it ends with us."""
        with (self.folder / "log").open("ab") as log:
            command = [program, "--conf", str(self.folder / "ceph.conf"), "--foreground", *arguments]
            self._daemons.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _answers(self) -> bool:
        ended = [daemon.args[0] for daemon in self._daemons if daemon.poll() is not None]  # type: ignore[index]
        if ended or time.monotonic() > self._deadline:
            end = (self.folder / "log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"Ceph did not start ({', '.join(map(str, ended)) or 'too slow'}): {end}")
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(1)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
