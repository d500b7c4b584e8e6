"""`ciar-cloud` as its users run it: a process, with exit codes and one line for each error."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from PIL import Image

from ciar import __version__
from ciar.target import Target
from ciar.types import ImageRequest, SamplingParams
from ciar_cloud.__main__ import main
from ciar_cloud.bundle import load_cloud_model
from ciar_cloud.solo import draw_alone
from tests.tiny import PROMPT, write_bundle

COMMAND = [sys.executable, "-m", "ciar_cloud"]
Command = Callable[..., tuple[object, str]]
KEYS = """prompt seed mode wavefront tokens grid prefix_tokens cloud_calls cloud_forwards
cloud_decided round_trips uplink_bytes downlink_bytes fallbacks resumes seconds output"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A command that fails, in this process: its exit code and what it said."""

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["ciar-cloud", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return run


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CIAR_")}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def call(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=environment(**env)
    )


@contextmanager
def serving(
    bundle: Path, *arguments: str, stdin: int | IO[bytes] = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A cloud in a process, and its ready line."""
    options = ["--model", str(bundle), "--port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(
        [*COMMAND, "serve", *options, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if process.stdin is not None:
            process.stdin.close()


def test_generate_prints_one_object_and_writes_the_picture(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "dog.png"
    done = call(
        *("generate", PROMPT, "-o", str(output), "--seed", "7", "--cfg-scale", "1.5", "--json"),
        CIAR_CLOUD_MODEL=str(bundle),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == set(KEYS.split())
    model = load_cloud_model(str(bundle))
    (features,) = model.encoder.encode([PROMPT])
    request = ImageRequest(prompt=PROMPT, sampling=SamplingParams(seed=7, cfg_scale=1.5))
    image = draw_alone(Target(model.target, num_slots=1), request, features)
    assert report["tokens"] == list(image.tokens)
    assert report["mode"] == "base"
    assert (report["cloud_calls"], report["cloud_forwards"]) == (1.0, 16)
    with Image.open(output) as picture:
        assert picture.size == (8, 8)
        chunks = picture.text  # type: ignore[attr-defined]
        assert (chunks["prompt"], chunks["seed"]) == (PROMPT, "7")
        assert chunks["fingerprint"] == model.info.fingerprint
        assert json.loads(chunks["counts"])["cloud_forwards"] == 16


def test_generate_draws_rows_side_by_side(bundle: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "dog.png")
    arguments = ("generate", PROMPT, "-o", output, "--wavefront", "2", "--json")
    done = call(*arguments, CIAR_CLOUD_MODEL=str(bundle))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["wavefront"], report["cloud_forwards"]) == (2, 4 + 2 * 3)


def test_generate_shows_lines_where_there_is_no_terminal(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = str(tmp_path / "x.png")
    arguments = ["generate", "a 🐶", "-o", output, "--model", str(bundle)]
    monkeypatch.setattr(sys, "argv", ["ciar-cloud", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert said.err.splitlines()[:4] == [f"{n}/16 tokens" for n in (4, 8, 12, 16)]
    assert "🐶" in said.err
    assert output in said.out


def test_health_asks_without_loading_torch(bundle: Path) -> None:
    """Containers start a process for every question."""
    program = (
        "import sys, ciar_cloud.__main__ as command\n"
        "try: command.main()\n"
        "finally: print(*(n for n in ('torch', 'ciar_cloud.cli') if n in sys.modules))"
    )
    with serving(bundle) as (_, line):
        address = line.split()[3]
        done = subprocess.run(
            [sys.executable, "-c", program, "health", address],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, "ready\n\n"), done.stderr
    gone = call("health", address)
    assert gone.returncode == 3 and address in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", " "], 2, "prompt"),
        (["generate", "x" * 10_000], 2, "prompt"),
        (["generate", "x", "--top-p", "0"], 2, "top_p"),
        (["generate", "x", "--seed", "-1"], 2, "seed"),
        (["generate", "x", "--dtype", "int4"], 2, "dtype"),
        (["generate", "x", "--device", "toaster"], 2, "device"),
        (["generate", "x", "--threads", "-1"], 2, "threads: -1: give 0"),
        (["generate", "x", "-o", "x.jpg"], 2, "output"),
        (["generate", "x", "-o", "/no/such/folder/x.png"], 6, "output"),
        (["serve", "--host", "0.0.0.0"], 2, "--insecure"),
        (["serve", "--port", "70000"], 2, "port"),
        (["serve", "--max-queue", "0"], 2, "max_queue"),
        (["generate", PROMPT, "--wavefront", "5"], 2, "wavefront: 5: give 1 to 3 tokens"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], code: int, words: str, bundle: Path, tmp_path: Path, command: Command
) -> None:
    if "generate" in arguments and "-o" not in arguments:
        arguments = [*arguments, "-o", str(tmp_path / "x.png")]
    status, error = command(*arguments, "--model", str(bundle))
    assert status == code, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


def test_where_features_cannot_go_is_told_before_any_are_made(
    tmp_path: Path, command: Command
) -> None:
    """Before the encoder is even loaded: there is none."""
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "model"
    prompts.write_text("a cat\n")
    (folder / "edge").mkdir(parents=True)
    out = prompts / "text"
    status, error = command("text-features", str(prompts), "-o", str(out), "--model", str(folder))
    assert (status, error.count("\n")) == (6, 1), error
    assert error.startswith("error: output: '") and "Not a directory" in error


def test_a_model_that_is_not_there_is_told(command: Command) -> None:
    for name in ("serve", "generate x"):
        status, error = command(*name.split(), "--model", "no-such-model")
        assert status == 5
        assert "no-such-model" in error


@pytest.mark.parametrize("part", ["cloud", "text"])
def test_a_truncated_checkpoint_is_told(part: str, tmp_path: Path, command: Command) -> None:
    weights = write_bundle(tmp_path) / part / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    status, error = command("serve", "--model", str(tmp_path))
    assert status == 5
    assert error.startswith("error: ")
    assert str(weights) in error


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ciar-cloud", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"ciar-cloud {__version__}\n"


def test_serve_says_where_and_leaves_on_sigterm(bundle: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with serving(bundle, "--ready-file", str(ready)) as (process, line):
        fingerprint = load_cloud_model(str(bundle)).info.fingerprint
        address = line.split()[3]
        assert line == (
            f"ciar-cloud ready on {address} (model ciar-tiny, fingerprint {fingerprint})\n"
        )
        while not ready.exists():
            assert process.poll() is None
        assert ready.read_text() == f"{address}\n"
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20):
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_that_is_taken_is_told(option: str, bundle: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        with serving(bundle, option, port) as (process, line):
            assert process.wait(30) == 2
            assert process.stdout is not None
            last = [line, *process.stdout][-1]  # gRPC says a line of its own before
            assert last.startswith(f"error: {option.strip('-').replace('-', '_')}: ")
            assert port in last


def test_an_embedded_cloud_ends_when_its_stdin_closes(bundle: Path) -> None:
    with serving(bundle, "--exit-with-parent", stdin=subprocess.PIPE) as (process, _):
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(15) == 0


PARENT = """
import subprocess, sys, time
print(subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL).pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd")
def test_an_embedded_cloud_does_not_outlive_its_parent(bundle: Path) -> None:
    """However the parent ends: here by SIGKILL, with no pipe between the two."""
    options = ["--model", str(bundle), "--port", "0", "--metrics-port", "0", "--exit-with-parent"]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *COMMAND, "serve", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert parent.stdout is not None
    with parent.stdout:
        assert int(parent.stdout.readline()) > 0
        assert "ready" in parent.stdout.readline()
        parent.kill()
        parent.wait()
        assert parent.stdout.read() == ""  # its end of the output closes when the cloud is gone
