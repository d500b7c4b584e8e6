"""The transformer equals the public LlamaGen implementation on golden files.

Cached equals uncached, and rollback is free.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from ciar.feed import Feed
from ciar.models.kv_cache import KVCache, Segment
from ciar.models.transformer import Transformer, TransformerConfig
from ciar.target import Target, TargetModel

GOLDEN = Path(__file__).parent / "data" / "llamagen_gpt_tiny.safetensors"
CAPTIONS = ("input.caption_len7", "input.caption_len23")


def golden(name: str) -> Tensor:
    with safe_open(GOLDEN, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


@pytest.fixture(scope="module")
def model() -> TargetModel:
    with safe_open(GOLDEN, "pt") as file:
        facts = file.metadata()
        names = [n for n in file.keys() if n.startswith("weights.")]  # noqa: SIM118
        state = {n.removeprefix("weights."): file.get_tensor(n) for n in names}
    config = TransformerConfig(
        vocab_size=int(facts["vocab_size"]),
        grid_size=int(facts["grid"]),
        num_layers=int(facts["n_layer"]),
        dim=int(facts["dim"]),
        num_heads=int(facts["n_head"]),
        ffn_multiple_of=int(facts["ffn_multiple_of"]),
        num_condition=int(facts["cls_token_num"]),
        condition_dim=int(facts["caption_dim"]),
    )
    target = TargetModel(config, feature_dim=8).eval()
    target.transformer.load_state_dict(state, strict=True)
    return target


def prefill(target: Target, slot: int, caption: Tensor, tokens: Tensor, cfg_scale: float) -> Feed:
    return Feed(
        slot=slot,
        num_condition=len(caption),
        position=0,
        tokens=tokens,
        cfg_scale=cfg_scale,
        condition=caption,
    )


def test_public_parameter_count() -> None:
    with torch.device("meta"):
        state = Transformer(TransformerConfig()).state_dict()
    assert len(state) == 258
    assert sum(t.numel() for t in state.values()) == 777_923_840


@torch.inference_mode()
@pytest.mark.parametrize("row", [0, 1])
def test_uncached_logits_equal_the_reference(model: TargetModel, row: int) -> None:
    caption, tokens = golden(CAPTIONS[row]), golden("input.tokens")[row, :-1].long()
    padding = 120 - len(caption)
    features = torch.nn.functional.pad(caption, (0, 0, padding, 0))[None]
    mask = (torch.arange(120) >= padding)[None]
    uncond = model.transformer.cls_embedding.uncond_embedding[None]
    for half, inputs in (("cond", features), ("uncond", uncond)):
        logits = model.transformer(inputs, mask, tokens[None])[0]
        expected = golden(f"expected.logits_{half}")[row]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunks", [(15,), (1,) * 15, (5, 1, 9)])
def test_cached_logits_equal_the_reference(model: TargetModel, chunks: tuple[int, ...]) -> None:
    """Both prompts in one step, whatever the chunking; the reference is guided by hand."""
    target = Target(model, num_slots=2)
    tokens = golden("input.tokens").long()
    feeds = [prefill(target, i, golden(c), tokens[i, :0], 3.0) for i, c in enumerate(CAPTIONS)]
    found = [[part] for part in target.extend(feeds)]
    position = 0
    for size in chunks:
        parts = target.extend(
            [
                Feed(
                    slot=i,
                    num_condition=len(golden(c)),
                    position=position,
                    tokens=tokens[i, position : position + size],
                    cfg_scale=3.0,
                )
                for i, c in enumerate(CAPTIONS)
            ]
        )
        for rows, part in zip(found, parts, strict=True):
            rows.append(part)
        position += size
    cond, uncond = golden("expected.logits_cond"), golden("expected.logits_uncond")
    expected = uncond + 3.0 * (cond - uncond)
    torch.testing.assert_close(
        torch.stack([torch.cat(rows) for rows in found]), expected, atol=1e-3, rtol=0
    )


def greedy(target: Target, slot: int, caption: Tensor, cfg_scale: float) -> list[int]:
    none = torch.empty(0, dtype=torch.long)
    (logits,) = target.extend([prefill(target, slot, caption, none, cfg_scale)])
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < target.config.num_tokens:
        feed = Feed(
            slot=slot,
            num_condition=len(caption),
            position=len(tokens) - 1,
            tokens=torch.tensor(tokens[-1:]),
            cfg_scale=cfg_scale,
        )
        (logits,) = target.extend([feed])
        tokens.append(int(logits[-1].argmax()))
    return tokens


def test_greedy_guided_tokens_equal_the_reference(model: TargetModel) -> None:
    target = Target(model, num_slots=1)
    for row, caption in enumerate(CAPTIONS):
        expected = golden("expected.greedy_cfg3_tokens")[row].tolist()
        assert greedy(target, 0, golden(caption), 3.0) == expected


def test_rollback_never_happened(model: TargetModel) -> None:
    """Feeding wrong tokens and then the right ones from an earlier position leaves no trace."""
    caption, tokens = golden(CAPTIONS[0]), golden("input.tokens")[0].long()

    def last_logits(wrong_first: bool) -> Tensor:
        target = Target(model, num_slots=1)
        target.extend([prefill(target, 0, caption, tokens[:3], 3.0)])
        feed = Feed(
            slot=0, num_condition=len(caption), position=3, tokens=tokens[3:6], cfg_scale=3.0
        )
        if wrong_first:
            target.extend([replace(feed, tokens=(tokens[3:9] + 1) % 96)])
        return target.extend([feed])[0]

    assert torch.equal(last_logits(False), last_logits(True))


def test_batched_equals_single(model: TargetModel) -> None:
    tokens = golden("input.tokens").long()
    together = Target(model, num_slots=2)
    sizes = (2, 7)
    feeds = [
        prefill(together, i, golden(c), tokens[i, : sizes[i]], 3.0) for i, c in enumerate(CAPTIONS)
    ]
    both = together.extend(feeds)
    for i, feed in enumerate(feeds):
        alone = Target(model, num_slots=2).extend([feed])[0]
        assert alone.shape == (1 + sizes[i], 96)
        torch.testing.assert_close(both[i], alone, atol=1e-5, rtol=1e-5)


def test_features_move_the_logits_and_zero_rows_do_not(model: TargetModel) -> None:
    caption, tokens = golden(CAPTIONS[0]), golden("input.tokens")[0].long()
    target = Target(model, num_slots=1)
    target.extend([prefill(target, 0, caption, tokens[:0], 3.0)])
    feed = Feed(slot=0, num_condition=len(caption), position=0, tokens=tokens[:4], cfg_scale=3.0)
    plain = target.extend([feed])[0]
    assert torch.equal(target.extend([replace(feed, features=torch.zeros(4, 8))])[0], plain)
    with torch.no_grad():
        model.injection.weight.normal_()
    features = torch.zeros(4, 8)
    features[2] = 1.0
    moved = target.extend([replace(feed, features=features)])[0]
    torch.testing.assert_close(moved[:2], plain[:2])
    assert not torch.allclose(moved[2], plain[2], atol=1e-3)
    with torch.no_grad():
        model.injection.weight.zero_()


@pytest.mark.parametrize("slots", [(2, 0, 3), (0, 1, 2)])
def test_padded_attention_equals_one_by_one(model: TargetModel, slots: tuple[int, ...]) -> None:
    """What a GPU runs: sessions of different lengths and chunks in one call, in any slots."""
    cache = KVCache(model.config, num_slots=4, num_rows=2)
    cache.data.normal_(generator=torch.Generator().manual_seed(0))
    before = cache.data.clone()
    shares = zip(slots, (9, 17, 0), (3, 1, 5), strict=True)
    segments = [Segment(slot, start, count) for slot, start, count in shares]
    sees = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.7
    segments[0] = replace(segments[0], sees=sees | torch.eye(3, 12, dtype=torch.bool))
    count = sum(2 * s.count for s in segments)
    heads, head_dim = model.config.num_heads, model.config.head_dim
    q, k, v = torch.randn(3, count, heads, head_dim, generator=torch.Generator().manual_seed(1))
    one_by_one = cache.attend(segments)(1, q, k, v)
    written = cache.data.clone()
    cache.data.copy_(before)
    cache.is_padded = True
    padded = cache.attend(segments)(1, q, k, v)
    torch.testing.assert_close(padded, one_by_one)
    assert torch.equal(cache.data, written)
