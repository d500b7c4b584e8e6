"""A TCP proxy that makes connections as slow as a link, in a process of its own.

Pieces are on their way at the same time: one thread a direction reads them as they come, another
sends each when it is through. Threads that sleep wake 0.1 ms late or less; an event loop wakes to
the next millisecond.
"""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from queue import SimpleQueue
from typing import TypeAlias

from ciar.errors import CloudUnavailable
from ciar_bench.slow_link import Direction, SlowLink

READ_BYTES = 1 << 16
STOP_SECONDS = 3.0

Pieces: TypeAlias = "SimpleQueue[tuple[float, bytes]]"
"""When each leaves, and what it is."""


@contextmanager
def slow_proxy(
    target: str, link: SlowLink, *, seed: int = 0, cores: Sequence[int] = ()
) -> Iterator[str]:
    """The address of a proxy to `target`, a HOST:PORT.  cores: that it may use; empty: as ours."""
    command = [sys.executable, "-m", "ciar_bench.slow_proxy", target, str(seed)]
    process = subprocess.Popen(
        [*command, json.dumps(asdict(link))],
        stdin=subprocess.PIPE,  # closes with this process, however it ends
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which then stops it
    )
    assert process.stdin and process.stdout
    try:
        if cores:
            os.sched_setaffinity(process.pid, cores)
        address = process.stdout.readline().strip()
        if not address:
            raise CloudUnavailable("the proxy to the cloud did not start: see above")
        yield address
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve(server: socket.socket, target: str, link: SlowLink, *, seed: int) -> None:
    """Carry every connection to `target`, until the process ends."""
    host, _, port = target.rpartition(":")
    dice = random.Random(seed)
    while True:
        here, _ = server.accept()
        try:
            there = socket.create_connection((host, int(port)))
        except OSError:  # nobody is there: neither is a proxy
            here.close()
            continue
        ways = [Direction(link, random.Random(dice.random())) for _ in range(2)]
        threading.Thread(target=connect, args=(here, there, ways), daemon=True).start()


def connect(here: socket.socket, there: socket.socket, ways: Sequence[Direction]) -> None:
    """Until both ends have closed it."""
    threads = []
    for source, sink, way in ((here, there, ways[0]), (there, here, ways[1])):
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pieces: Pieces = SimpleQueue()
        threads.append(threading.Thread(target=take_in, args=(source, pieces, way), daemon=True))
        threads.append(threading.Thread(target=give_out, args=(pieces, source, sink), daemon=True))
    with here, there:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def take_in(source: socket.socket, pieces: Pieces, way: Direction) -> None:
    """The last piece is an empty one."""
    data = b"some"
    while data:
        try:
            data = source.recv(READ_BYTES)
        except OSError:  # reset
            data = b""
        pieces.put((way.leaves(time.monotonic(), len(data)), data))


def give_out(pieces: Pieces, source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):  # nobody is there any more
        while True:
            leaves, data = pieces.get()
            time.sleep(max(0.0, leaves - time.monotonic()))
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
    with suppress(OSError):
        source.shutdown(socket.SHUT_RDWR)


def main() -> None:
    target, seed, link = sys.argv[1:]
    server = socket.create_server(("127.0.0.1", 0))
    host, port = server.getsockname()
    arguments = {"target": target, "link": SlowLink(**json.loads(link)), "seed": int(seed)}
    threading.Thread(target=serve, args=(server,), kwargs=arguments, daemon=True).start()
    print(f"{host}:{port}", flush=True)
    sys.stdin.read()  # until whoever started it ends


if __name__ == "__main__":
    main()
