"""What processes log: one JSON object a line, with ids of calls, and nothing that is private."""

import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from ciar import logs
from ciar.errors import InvalidInput
from ciar.logs import about, clean, digest, set_up_logs
from ciar.v1 import collaboration_pb2 as pb
from ciar.v1.collaboration_pb2_grpc import CollaborationStub
from tests.test_edge_cli import command, edge
from tests.test_edge_cli import wait_until as wait_until_so

PROMPT = "a dog on the zebra"


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was written there; the root logger is as before afterwards."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield lambda: capsys.readouterr().err
    root.setLevel(level)
    root.handlers[:] = handlers


@contextmanager
def serving(bundle: Path, folder: Path, *options: str) -> Iterator[tuple[str, Path]]:
    """A cloud process: its address, and the file of its log."""
    ready, log = folder / "ready", folder / "log"
    ports = ("--port", "0", "--metrics-port", "0", "--ready-file", ready)
    with log.open("w") as file:
        process = subprocess.Popen(
            command(
                "ciar_cloud", "serve", "--model", bundle, *ports, *options, "--exit-with-parent"
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    try:
        wait_until_so(ready.exists)
        yield ready.read_text().strip(), log
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_both_sides_log_an_image_by_the_same_ids(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, "--log-format", "json", "--log-level", "debug") as (cloud, log):
        done = edge(
            PROMPT, "--model", bundle, "--cloud", cloud, "--quiet", folder=tmp_path,
            CIAR_LOG_FORMAT="json", CIAR_LOG_LEVEL="info",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        wait_until_so(lambda: "image finished" in log.read_text())
        with grpc.insecure_channel(cloud) as channel:
            stub: Any = CollaborationStub(channel)
            metadata = (("x-request-id", "given by a proxy" + "!" * 100),)
            stub.GetModel(pb.GetModelRequest(protocol_version=1), metadata=metadata, timeout=10)
            with pytest.raises(grpc.RpcError):
                stub.GetModel(pb.GetModelRequest(protocol_version=7), timeout=10)
    (opened,) = objects(done.stderr)
    assert opened["message"] == "session opened" and opened["logger"] == "ciar_edge.remote"
    text = log.read_text()
    assert not any(word in text for word in ("zebra", *PROMPT.split()[1:2]))
    records = objects(text)
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, records))
    (finished,) = [record for record in records if record["message"] == "image finished"]
    assert finished["image"] == opened["image"] and finished["session"] == opened["session"]
    tokens = [finished[name] for name in ("prefix", "kept", "agreed", "drawn", "fallback")]
    assert sum(tokens) == 16
    calls = [record for record in records if record["message"] == "call ended"]
    methods = [record["method"] for record in calls]
    assert methods == ["GetModel", "PrefixInject", "VerifyBatch", "GetModel", "GetModel"]
    assert {calls[1]["image"], calls[2]["image"]} == {opened["image"]}
    assert len({record["request"] for record in calls}) == len(calls)
    assert calls[3]["request"].startswith("given by a proxy!") and len(calls[3]["request"]) == 64
    assert calls[3]["level"] == "DEBUG"
    assert (calls[4]["error"], calls[4]["level"]) == ("InvalidInput", "INFO")


@pytest.mark.parametrize("mode", ["--single-process", "--engine-process"])
def test_slow_steps_are_logged_and_say_what_they_held(
    bundle: Path, tmp_path: Path, mode: str
) -> None:
    options = ("--slow-step-seconds", "0.000001", "--log-format", "json", mode)
    with serving(bundle, tmp_path, *options) as (cloud, log):
        done = edge(
            *(PROMPT, "--model", bundle, "--cloud", cloud, "--prefix-rate", "0.2"), folder=tmp_path
        )
        assert done.returncode == 0, done.stderr
        wait_until_so(lambda: "image finished" in log.read_text())
    slow = [r for r in objects(log.read_text()) if r["message"].endswith("slow step")]
    assert slow[0]["prefixes"] == slow[0]["sessions"] == 1 and slow[-1]["prefixes"] == 0
    assert all(r["level"] == "WARNING" and 0 < r["seconds"] < 60 for r in slow)
    assert all(r["positions"] >= r["most_positions"] > 0 for r in slow)


def test_lines_for_people(stderr: Callable[[], str]) -> None:
    set_up_logs(level="info")
    log = logging.getLogger("ciar_cloud.x")
    with about(image="i1"), about(session="", request="r1"):
        log.info("image finished", extra=logs.fields(seconds=1.23456789))
        log.debug("too much")
    log.warning("outside")
    first, second = stderr().splitlines()
    assert first.endswith("INFO ciar_cloud.x: image finished seconds=1.2346 image=i1 request=r1")
    assert second.endswith("WARNING ciar_cloud.x: outside")


def test_errors_are_whole_in_one_line_of_json(stderr: Callable[[], str]) -> None:
    set_up_logs(kind="json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    (record,) = objects(stderr())
    assert record["message"] == "it failed"
    assert record["exception"].endswith("ValueError: two\nlines")


def test_ids_of_others_cannot_break_a_line() -> None:
    assert clean("a\nb\x1b[31mé") == "a?b?[31m?"
    assert len(clean("x" * 1000)) == 64


def test_a_digest_is_no_session_id() -> None:
    assert digest("abc") == digest("abc") != digest("abd")
    assert len(digest("abc")) == 12


@pytest.mark.parametrize(("level", "kind"), [("loud", "text"), ("info", "xml")])
def test_unknown_settings_are_named(level: str, kind: str) -> None:
    with pytest.raises(InvalidInput, match="give one of"):
        set_up_logs(level=level, kind=kind)
