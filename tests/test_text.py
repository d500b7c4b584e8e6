"""Prompts to features by the folder's kind: T5 as transformers runs it, and features kept."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

from ciar.checkpoint import DEFAULT_MODEL, find_model
from ciar.errors import CheckpointError, InvalidInput, MissingExtra
from ciar.models.cached_features import CachedFeatures
from ciar.models.t5_encoder import T5Encoder
from ciar.text import load_text
from ciar_cloud.convert.convert import Settings, convert
from tests.toy_t5 import write_t5

PROMPTS = ("A dog on the beach", "a cat", "")
DIM = 16


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5") / "flan", dim=DIM, num_shards=2)


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    convert([source], out, Settings(max_bytes=2000))
    return out / "text"


@torch.no_grad()
def test_features_are_those_of_the_reference(source: Path, folder: Path) -> None:
    """As the public scripts compute them: padded to 120, the mask given, valid rows kept."""
    encoder = load_text(folder)
    assert (encoder.dim, encoder.max_tokens) == (DIM, 120)
    model = T5ForConditionalGeneration.from_pretrained(source).get_encoder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    together = encoder.encode(PROMPTS)
    for prompt, found in zip(PROMPTS, together, strict=True):
        batch = tokenizer(
            [prompt.lower()],
            max_length=120,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        expected = model(**{n: batch[n] for n in ("input_ids", "attention_mask")})
        length = int(batch["attention_mask"].sum())
        assert len(found) == length == len(prompt.split()) + 1
        rows = expected.last_hidden_state[0, :length]
        torch.testing.assert_close(found, rows, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.encode([prompt])[0], found, atol=1e-5, rtol=1e-4)


def test_long_prompts_are_cut(folder: Path) -> None:
    (rows,) = load_text(folder).encode(["dog " * 300])
    assert rows.shape == (120, DIM)


def test_the_decoder_is_left_out(source: Path, folder: Path) -> None:
    def size(root: Path) -> int:
        return sum(path.stat().st_size for path in root.rglob("*.safetensors"))

    assert len(list((folder / "t5").glob("*.safetensors"))) > 1
    assert size(folder) < 0.6 * size(source)


def test_an_encoder_is_whole_or_refused(source: Path, tmp_path: Path) -> None:
    write_t5(tmp_path / "flan", dim=DIM)
    (tmp_path / "flan" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer.json or spiece.model"):
        convert([tmp_path / "flan"], tmp_path / "out", Settings())
    write_t5(tmp_path / "flan", dim=DIM)
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "flan" / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    with pytest.raises(CheckpointError, match=r"missing encoder\.block\.2"):
        convert([tmp_path / "flan"], tmp_path / "out", Settings())
    (tmp_path / "flan" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="give the folder of the whole model"):
        convert([tmp_path / "flan"], tmp_path / "out", Settings())
    assert not (tmp_path / "out" / "text" / "config.json").exists()


def test_a_damaged_encoder_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="no T5 encoder"):
        load_text(tmp_path)


def test_without_transformers_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"ciar\[t5\]"):
        T5Encoder.load(folder)


def test_an_unknown_kind_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "clip"}')
    with pytest.raises(CheckpointError, match="text-encoder, t5, token-prompt, cached-features"):
        load_text(tmp_path)


def test_the_embedded_encoder_is_one_of_them() -> None:
    encoder = load_text(find_model(DEFAULT_MODEL) / "text")
    (rows,) = encoder.encode(["a dog on a beach"])
    assert rows.shape[1] == encoder.dim == 384
    assert encoder.unknown_words("a dog") == []


# Kept features


def test_kept_features_are_the_encoders(folder: Path, tmp_path: Path) -> None:
    encoder = load_text(folder)
    rows = encoder.encode(PROMPTS)
    CachedFeatures.save(tmp_path, PROMPTS, rows, max_tokens=encoder.max_tokens)
    kept = load_text(tmp_path)
    assert (kept.dim, kept.max_tokens) == (encoder.dim, encoder.max_tokens)
    for a, b in zip(kept.encode(PROMPTS[::-1]), rows[::-1], strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InvalidInput, match="one of the 3 prompts"):
        kept.encode(["a horse"])


def test_kept_features_fit_together_or_are_refused(tmp_path: Path) -> None:
    CachedFeatures.save(tmp_path, ["a", "b"], [torch.ones(2, 4), torch.ones(1, 4)], max_tokens=8)
    (tmp_path / "prompts.json").write_text('["a"]')
    with pytest.raises(CheckpointError, match="belong to different caches"):
        load_text(tmp_path)
    (tmp_path / "prompts.json").unlink()
    with pytest.raises(CheckpointError, match="no cached features"):
        load_text(tmp_path)
