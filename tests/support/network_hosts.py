"""Two hosts on this machine: network namespaces with a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from slurm_cluster import PLACES
from slurm_cluster import missing as slurm_missing

ADDRESSES = ("10.231.7.1", "10.231.7.2")


def missing() -> str:
    """Return what keeps hosts from being made here; an empty text where nothing does."""
    if shutil.which("ip", path=PLACES) is None:
        return "ip missing: Debian's package iproute2 has it"
    if os.geteuid() != 0:
        return "network namespaces are made as root"
    probe = f"probe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "this machine makes no network namespaces"
    ip("netns", "del", probe)
    return ""


def ip(*words: str) -> None:
    """Run the program `ip`."""
    subprocess.run(["ip", *words], check=True, env={**os.environ, "PATH": PLACES})


class Hosts:
    """Two hosts and their cable."""

    def __init__(self) -> None:
        self.names = [f"host{number}.{os.getpid()}" for number in range(2)]

    def plug(self, state: str) -> None:
        """Plug the cable of the second host in (`up`) or out (`down`)."""
        ip("-n", self.names[1], "link", "set", "cable", state)


def main() -> None:
    """Say what is missing for `make test-slurm`."""
    found = [reason for reason in (slurm_missing(), missing()) if reason]
    if found:
        sys.exit(f"not tested: {'; '.join(found)}")


@contextmanager
def hosts() -> Iterator[Hosts]:
    """Make the hosts, and remove them at the end."""
    found = Hosts()
    try:
        for name in found.names:
            ip("netns", "add", name)
        first, second = found.names
        ends = ["cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second]
        ip("link", "add", *ends)
        for name, address in zip(found.names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield found
    finally:
        for name in found.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


if __name__ == "__main__":
    main()
