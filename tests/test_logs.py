"""What processes log: one JSON object a line, with ids of calls, and nothing that is private."""

import json
import logging
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
from tests.test_cloud_cli import serving
from tests.test_edge_cli import edge

PROMPT = "a dog on the zebra"


@contextmanager
def logging_cloud(bundle: Path, *options: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """Address of a cloud process; and how to end it, for all that it logged."""
    with serving(bundle, *options) as (process, line):
        assert process.stdout is not None
        while "ready on" not in line:  # libraries log before
            line = process.stdout.readline()
            assert line, "the cloud has ended"

        def ended() -> str:
            process.terminate()
            text, _ = process.communicate(timeout=30)
            assert process.returncode == 0, text
            return text

        yield line.split()[3], ended


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_both_sides_log_an_image_by_the_same_ids(bundle: Path, tmp_path: Path) -> None:
    options = ("--log-format", "json", "--log-level", "debug")
    with logging_cloud(bundle, *options) as (cloud, ended):
        done = edge(
            PROMPT, "--model", bundle, "--cloud", cloud, "--quiet", folder=tmp_path,
            CIAR_LOG_FORMAT="json", CIAR_LOG_LEVEL="info",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with grpc.insecure_channel(cloud) as channel:
            stub: Any = CollaborationStub(channel)
            metadata = (("x-request-id", "given by a proxy" + "!" * 100),)
            stub.GetModel(pb.GetModelRequest(protocol_version=1), metadata=metadata, timeout=10)
            with pytest.raises(grpc.RpcError):
                stub.GetModel(pb.GetModelRequest(protocol_version=7), timeout=10)
        text = ended()
    (opened,) = objects(done.stderr)
    assert opened["message"] == "session opened" and opened["logger"] == "ciar_edge.remote"
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
    with logging_cloud(bundle, *options) as (cloud, ended):
        done = edge(
            *(PROMPT, "--model", bundle, "--cloud", cloud, "--prefix-rate", "0.2"), folder=tmp_path
        )
        assert done.returncode == 0, done.stderr
        records = objects(ended())
    assert any(record["message"] == "image finished" for record in records)
    slow = [r for r in records if r["message"].endswith("slow step")]
    assert slow[0]["prefixes"] == slow[0]["sessions"] == 1 and slow[-1]["prefixes"] == 0
    assert all(r["level"] == "WARNING" and 0 < r["seconds"] < 60 for r in slow)
    assert all(r["positions"] >= r["most_positions"] > 0 for r in slow)


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs(level="info")
    log = logging.getLogger("ciar_cloud.x")
    with about(image="i1"), about(session="", request="r1"):
        log.info("image finished", extra=logs.fields(seconds=1.23456789))
        log.debug("too much")
    log.warning("outside")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("INFO ciar_cloud.x: image finished seconds=1.2346 image=i1 request=r1")
    assert second.endswith("WARNING ciar_cloud.x: outside")


def test_errors_are_whole_in_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs(kind="json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    (record,) = objects(capsys.readouterr().err)
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
