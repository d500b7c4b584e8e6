"""A network namespace behind a pair of interfaces, with `tc netem` on both: a slow link of Linux.

What is in it goes with its context, on errors and signals too; what a killed process has left is
removed by the next one.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ciar_bench.slow_link import SlowLink

PREFIX = "ciar-bench-"
NAMESPACES = Path("/run/netns")  # of `ip netns`
QUEUE_PACKETS = 100_000  # so that nothing is dropped but by `loss`
FREE_BANDWIDTH = 1e11  # no limit
PROBE = SlowLink(rtt=0.001, jitter=0.001, bandwidth=1e9, loss=0.01)


class NotAllowed(Exception):
    """No namespaces or no slow interfaces for us on this machine; the message says why."""


class NetworkNamespace:
    """inside: in front of a command that is to run in it.  options: for a cloud there.

    Addresses are in 198.18.0.0/15, which is for benches.
    """

    def __init__(self, pid: int) -> None:
        self._name, self._near, self._far = f"{PREFIX}{pid}", f"ciar{pid}n", f"ciar{pid}f"
        block, rest = divmod(4 * pid, 256)
        network = f"198.{18 + block // 256 % 2}.{block % 256}"
        self._near_host, self.host = f"{network}.{rest + 1}", f"{network}.{rest + 2}"
        self.inside: tuple[str, ...] = ("ip", "netns", "exec", self._name)
        self.options: tuple[str, ...] = ("--host", self.host, "--insecure")

    def create(self) -> None:
        """Raises `NotAllowed`."""
        far = ("ip", "-n", self._name)
        call("ip", "netns", "add", self._name)
        call("ip", "link", "add", self._near, "type", "veth", "peer", self._far)
        call("ip", "link", "set", self._far, "netns", self._name)
        call("ip", "address", "add", f"{self._near_host}/30", "dev", self._near)
        call(*far, "address", "add", f"{self.host}/30", "dev", self._far)
        call("ip", "link", "set", self._near, "up")
        call(*far, "link", "set", self._far, "up")
        call(*self.inside, "true")

    def remove(self) -> None:
        for command in (("ip", "link", "del", self._near), ("ip", "netns", "del", self._name)):
            with suppress(NotAllowed):  # it is not there
                call(*command)

    def carrier(self, link: SlowLink) -> str:
        return "network namespaces"

    @contextmanager
    def slow(self, address: str, link: SlowLink) -> Iterator[str]:
        """Where to reach what listens at `address`. Raises `NotAllowed`."""
        tools = (("tc",), ("tc", "-n", self._name))
        devices = list(zip(tools, (self._near, self._far), strict=True))
        if link.is_plain:
            yield address
            return
        try:
            for tc, device in devices:
                call(*tc, "qdisc", "add", "dev", device, "root", "netem", *netem(link))
            yield address
        finally:
            for tc, device in devices:
                with suppress(NotAllowed):
                    call(*tc, "qdisc", "del", "dev", device, "root")


def netem(link: SlowLink) -> list[str]:
    """Of one direction; its jitter is one to both sides of the delay."""
    options = ["limit", str(QUEUE_PACKETS), "delay", f"{1e6 * (link.rtt + link.jitter) / 2:.0f}us"]
    if link.jitter:
        options.append(f"{1e6 * link.jitter / 2:.0f}us")
    if link.loss:
        options += ["loss", f"{100 * link.loss:g}%"]
    if link.bandwidth or link.jitter:  # without a rate jitter lets packets overtake each other
        options += ["rate", f"{link.bandwidth or FREE_BANDWIDTH:.0f}bit"]
    return options


@contextmanager
def network_namespace() -> Iterator[NetworkNamespace]:
    """Of this process, made and tried. Raises `NotAllowed`."""
    remove_left()
    namespace = NetworkNamespace(os.getpid())
    try:
        namespace.create()
        with namespace.slow(namespace.host, PROBE):
            pass
        os.environ["no_grpc_proxy"] = namespace.host  # noqa: SIM112  gRPC's own spelling
        yield namespace
    finally:
        namespace.remove()


def remove_left() -> None:
    """What processes that are gone have left."""
    for path in NAMESPACES.glob(f"{PREFIX}*"):
        number = path.name.removeprefix(PREFIX)
        if not number.isdigit():  # somebody else's
            continue
        pid = int(number)
        if pid == os.getpid() or not Path(f"/proc/{pid}").exists():
            NetworkNamespace(pid).remove()


def call(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NotAllowed(f"there is no `{command[0]}`") from None
    except subprocess.CalledProcessError as error:
        raise NotAllowed(f"`{' '.join(command)}`: {error.stderr.strip()}") from None
