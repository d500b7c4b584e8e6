"""Slow links: what they promise, over real sockets, by a proxy and by network namespaces."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ciar.errors import InvalidInput
from ciar_bench import emulation as emulations
from ciar_bench.emulation import emulation
from ciar_bench.network_namespace import (
    PREFIX,
    NetworkNamespace,
    NotAllowed,
    call,
    netem,
    network_namespace,
)
from ciar_bench.slow_link import Direction, SlowLink
from ciar_bench.slow_proxy import READ_BYTES, slow_proxy

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(*server.getsockname(), sep=":", flush=True)
while True:
    with server.accept()[0] as end:
        while data := end.recv(1 << 16):
            end.sendall(data)
"""


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """A process that sends back what it gets, one connection after the other."""
    with subprocess.Popen(
        [sys.executable, "-c", ECHO, "127.0.0.1"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.kill()


def reach(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def exchange(address: str, pieces: list[bytes], *, gap: float = 0.0) -> tuple[bytes, float]:
    """What comes back until the other end closes, and the seconds that it took."""
    found = bytearray()
    with reach(address) as end:
        started = time.monotonic()

        def send() -> None:
            for piece in pieces:
                end.sendall(piece)
                time.sleep(gap)
            end.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        while data := end.recv(READ_BYTES):
            found += data
        seconds = time.monotonic() - started
        thread.join()
    return bytes(found), seconds


# ------------------------------------------------------------------------------------------- clock


def leaves(link: SlowLink, arrivals: list[tuple[float, int]], seed: int = 0) -> list[float]:
    way = Direction(link, random.Random(seed))
    return [way.leaves(*arrival) for arrival in arrivals]


def test_a_direction_delays_by_half_the_round_trip() -> None:
    arrivals = [(0.1 * i, 100) for i in range(5)]
    assert leaves(SlowLink(), arrivals) == [seconds for seconds, _ in arrivals]
    found = leaves(SlowLink(rtt=0.05), arrivals)
    assert found == pytest.approx([seconds + 0.025 for seconds, _ in arrivals])


def test_jitter_comes_on_top_and_keeps_the_order() -> None:
    arrivals = [(0.001 * i, 100) for i in range(500)]
    found = leaves(SlowLink(rtt=0.01, jitter=0.02), arrivals)
    delays = [seconds - at for seconds, (at, _) in zip(found, arrivals, strict=True)]
    assert found == sorted(found)
    assert min(delays) >= 0.005
    assert 0.02 < max(delays) <= 0.025


def test_the_line_carries_one_piece_after_the_other() -> None:
    link = SlowLink(rtt=0.1, bandwidth=8000)  # 1000 bytes a second
    assert leaves(link, [(0, 100), (0, 200), (5, 300)]) == pytest.approx([0.15, 0.35, 5.35])


def test_a_loss_holds_up_what_follows() -> None:
    arrivals = [(0.01 * i, 100) for i in range(2000)]
    link = SlowLink(rtt=0.02, loss=0.01)
    found = leaves(link, arrivals)
    delays = [seconds - at for seconds, (at, _) in zip(found, arrivals, strict=True)]
    assert found == sorted(found)
    lost = [i for i, delay in enumerate(delays) if delay == pytest.approx(0.21)]
    assert 5 <= len(lost) <= 40  # 20 are expected
    assert delays[lost[0] + 1] == pytest.approx(0.2)  # waits for the one before
    assert delays[0] == pytest.approx(0.01)
    assert leaves(link, arrivals) == found != leaves(link, arrivals, seed=1)


def test_a_loss_takes_a_round_trip_at_least_and_hits_large_pieces_more() -> None:
    assert SlowLink(rtt=0.5).resend_seconds == 0.5
    link, sizes = SlowLink(loss=0.02), (100, 100 * 1448)
    small, large = (
        sum(Direction(link, random.Random(i)).leaves(0, size) > 0 for i in range(300))
        for size in sizes
    )
    assert small < 30 < 200 < large  # 6 and 260 are expected


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"rtt": 2.0}, "rtt: '2000': give milliseconds from 0 to 1000"),
        ({"rtt": float("nan")}, "rtt: 'nan': give milliseconds"),
        ({"jitter": -0.001}, "jitter: '-1': give milliseconds"),
        ({"bandwidth": -1e6}, "bandwidth: '-1': give Mbit/s above 0"),
        ({"loss": 0.9}, "loss: '90': give percent from 0 to 50"),
    ],
)
def test_a_link_that_cannot_be_is_refused(options: dict[str, float], remedy: str) -> None:
    with pytest.raises(InvalidInput, match=remedy):
        SlowLink(**options)


def test_a_link_in_words() -> None:
    assert str(SlowLink()) == "RTT 0 ms"
    link = SlowLink(rtt=0.01, jitter=0.001, bandwidth=2e7, loss=0.005)
    assert str(link) == "RTT 10 ms, jitter 1 ms, 20 Mbit/s, 0.5 % loss"
    assert SlowLink().is_plain and not SlowLink(bandwidth=1e6).is_plain


# ------------------------------------------------------------------------------------------- proxy


def test_a_round_trip_takes_what_it_should(echo: str) -> None:
    with slow_proxy(echo, SlowLink(rtt=0.1)) as address, reach(address) as end:
        for _ in range(3):
            started = time.monotonic()
            end.sendall(b"x")
            assert end.recv(1) == b"x"
            assert time.monotonic() - started >= 0.1


def test_pieces_are_on_their_way_at_the_same_time(echo: str) -> None:
    """Fifty of them take a round trip; one after another they would take 5 s a direction."""
    pieces = [os.urandom(READ_BYTES) for _ in range(50)]
    with slow_proxy(echo, SlowLink(rtt=0.2)) as address:
        found, seconds = exchange(address, pieces)
    assert found == b"".join(pieces)
    assert 0.2 <= seconds < 4


@pytest.mark.parametrize(
    ("link", "least_seconds"),
    [
        (SlowLink(), 0.0),
        (SlowLink(rtt=0.02, jitter=0.02), 0.02),
        (SlowLink(bandwidth=4e6), 0.2),  # 100 kB
        (SlowLink(rtt=0.01, jitter=0.005, bandwidth=2e7, loss=0.02), 0.04),
    ],
    ids=str,
)
def test_bytes_and_their_order_are_kept(echo: str, link: SlowLink, least_seconds: float) -> None:
    dice = random.Random(1)
    pieces = [dice.randbytes(1000) for _ in range(100)]
    with slow_proxy(echo, link, seed=3) as address:
        found, seconds = exchange(address, pieces, gap=0.0005)
    assert found == b"".join(pieces)
    assert seconds >= least_seconds


def test_several_connections_have_a_link_each(echo: str) -> None:
    with slow_proxy(echo, SlowLink(rtt=0.02)) as address:
        assert [exchange(address, [b"a", b"b"])[0] for _ in range(3)] == [b"ab"] * 3


def test_it_closes_what_nobody_answers_and_ends_with_its_context() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
    with slow_proxy(f"{host}:{port}", SlowLink()) as address, reach(address) as end:
        assert end.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        reach(address)


def test_it_does_not_outlive_who_started_it(echo: str) -> None:
    script = f"""
from ciar_bench.slow_proxy import slow_proxy, SlowLink
with slow_proxy({echo!r}, SlowLink()) as address:
    print(address, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        reach(address).close()
        process.kill()
    deadline = time.monotonic() + 30
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:
            reach(address).close()
            time.sleep(0.05)


def test_it_breaks_off_what_the_other_end_breaks_off(echo: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with slow_proxy(f"{host}:{port}", SlowLink(rtt=0.01)) as address, reach(address) as end:
            server.accept()[0].close()
            assert end.recv(1) == b""


# -------------------------------------------------------------------------------------- which one


def deny(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NotAllowed("not here")

    monkeypatch.setattr(emulations, "network_namespace", refuse)


def test_without_namespaces_it_is_a_proxy(monkeypatch: pytest.MonkeyPatch, echo: str) -> None:
    deny(monkeypatch)
    said: list[str] = []
    slow = SlowLink(rtt=0.01)
    with emulation("auto", [SlowLink(), slow], say=said.append) as found:
        assert said == ["no network namespaces, so a proxy: not here"]
        assert [found.carrier(link) for link in (SlowLink(), slow)] == ["straight", "a proxy"]
        with found.slow(echo, SlowLink()) as address:
            assert address == echo
        with found.slow(echo, slow) as address:
            assert address != echo
            assert exchange(address, [b"hello"])[0] == b"hello"


def test_nothing_is_tried_where_nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch)
    said: list[str] = []
    with emulation("auto", [SlowLink()], say=said.append) as found:
        assert found.carrier(SlowLink()) == "straight" and not said


def test_a_proxy_that_was_asked_for_is_always_there(echo: str) -> None:
    with emulation("proxy", [SlowLink()], say=pytest.fail) as found:
        assert found.carrier(SlowLink()) == "a proxy"
        with found.slow(echo, SlowLink()) as address:
            assert address != echo


def test_namespaces_that_were_asked_for_are_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deny(monkeypatch)
    with (
        pytest.raises(InvalidInput, match="emulation: 'netns': give proxy: not here"),
        emulation("netns", [SlowLink()], say=pytest.fail),
    ):
        pytest.fail("there are none")


# -------------------------------------------------------------------------------------- namespaces


def names() -> set[str]:
    """Of the namespaces and interfaces that are ours."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    links = [path.name for path in Path("/sys/class/net").glob("ciar*")]
    return {name for name in listed if name.startswith(PREFIX)} | set(links)


def exchange_inside(namespace: NetworkNamespace, link: SlowLink) -> float:
    """Seconds of a message there and back, from a process in it."""
    with ExitStack() as stack:
        command = [*namespace.inside, sys.executable, "-c", ECHO, namespace.host]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        assert process.stdout
        address = process.stdout.readline().strip()
        with namespace.slow(address, link) as reached:
            found, seconds = exchange(reached, [b"hello"])
        assert found == b"hello"
        return seconds


def test_a_namespace_makes_a_slow_link() -> None:
    try:
        with network_namespace() as namespace:
            assert exchange_inside(namespace, SlowLink(rtt=0.4, jitter=0.01)) >= 0.4
            assert exchange_inside(namespace, SlowLink()) < 0.4
    except NotAllowed as error:
        pytest.skip(str(error))
    finally:
        assert not names()


@pytest.fixture
def tc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `tc` was asked for, a line each: one that does nothing is in front of the real one."""
    calls, script = tmp_path / "calls", tmp_path / "tc"
    script.write_text(f'#!/bin/sh\necho "tc $*" >> {calls}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    probe = NetworkNamespace(os.getpid())
    try:
        probe.create()
    except NotAllowed as error:
        pytest.skip(str(error))
    finally:
        probe.remove()
    return calls


def test_namespaces_are_wired_and_taken_down(tc: Path) -> None:
    with pytest.raises(ZeroDivisionError), network_namespace() as namespace:
        tc.unlink()  # those of the trial
        exchange_inside(namespace, SlowLink(rtt=0.05, jitter=0.01))
        assert names()
        raise ZeroDivisionError
    assert not names()
    shaped = "root netem limit 100000 delay 30000us 5000us rate 100000000000bit"
    near, far = f"dev ciar{os.getpid()}n", f"dev ciar{os.getpid()}f"
    here, there = "tc qdisc", f"tc -n {PREFIX}{os.getpid()} qdisc"
    assert tc.read_text().splitlines() == [
        f"{here} add {near} {shaped}",
        f"{there} add {far} {shaped}",
        f"{here} del {near} root",
        f"{there} del {far} root",
    ]


def test_what_a_killed_process_has_left_is_removed(tc: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    NetworkNamespace(process.pid).create()
    assert f"{PREFIX}{process.pid}" in names()
    with network_namespace():
        assert f"{PREFIX}{process.pid}" not in names()
    assert not names()


def test_a_signal_leaves_nothing(tc: Path, bundle: Path) -> None:
    command = [sys.executable, "-m", "ciar_bench.cli", "latency", "--model", str(bundle)]
    command += ["--rounds", "1000", "--rtt", "1", "--emulation", "netns"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert "RTT 1 ms: round 1 of 1000" in process.stderr.readline()
        assert names()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not names()


def test_netem_is_told_all_of_a_link() -> None:
    link = SlowLink(rtt=0.04, bandwidth=1e7, loss=0.015)
    assert " ".join(netem(link)) == "limit 100000 delay 20000us loss 1.5% rate 10000000bit"


def test_a_tool_that_is_not_there_is_named() -> None:
    with pytest.raises(NotAllowed, match="there is no `no-such-tool`"):
        call("no-such-tool")
