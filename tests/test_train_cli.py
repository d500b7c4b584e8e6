"""`ciar-train`: where a run goes by default, and options that cannot be used."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ciar.errors import InvalidInput
from ciar_train.cli import app


def fails(*arguments: str) -> str:
    """The error of a command that could not begin."""
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert isinstance(done.exception, InvalidInput), done.output
    return str(done.exception)


def test_every_size_has_a_run_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text('like = "mini"\n')
    for size in ("mini", "mini-cpu", "own.toml"):
        folder = Path("runs") / Path(size).stem / "scenes"
        assert f"data: '{folder}/train'" in fails("tokenizer", "--size", size)
    assert "data: 'other/" in fails("tokenizer", "--size", "mini", "--run", "other")
    assert "data: 'runs/mini-cpu/" in fails("tokenizer")


def test_threads_below_none_are_refused() -> None:
    done = CliRunner().invoke(app, ["tokenizer", "--threads", "-1"])
    assert done.exit_code == 2
    assert "--threads" in done.output


@pytest.mark.parametrize("text", [b"[data\n", b"name = '\xff'\n"])
def test_settings_that_are_no_toml_are_named(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    assert f"size: '{path}': cannot be read as TOML" in fails("tokenizer", "--size", str(path))
    like = tmp_path / "like.toml"
    like.write_text(f'like = "{path}"\n')
    assert f"like: '{path}': cannot be read as TOML" in fails("tokenizer", "--size", str(like))
