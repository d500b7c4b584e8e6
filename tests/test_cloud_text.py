"""Which prompts can be drawn from, and that encoding gives what the text encoder gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ciar.errors import InvalidInput
from ciar.target import Target
from ciar_cloud.bundle import CloudModel, load_cloud_model
from ciar_cloud.text import MAX_PROMPT_CHARS, PromptEncoder, check_prompt
from tests.tiny import PROMPT, write_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CloudModel:
    folder: Path = write_bundle(tmp_path_factory.mktemp("bundle"))
    return load_cloud_model(str(folder))


@pytest.mark.parametrize(
    "prompt",
    ["", "   ", "\n\t", "\u200b", "a\x00b", "a\x1b[31mb", "a\ud800b", "a" * (MAX_PROMPT_CHARS + 1)],
)
def test_what_is_no_prompt_is_refused_by_name(prompt: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_prompt(prompt)
    assert caught.value.field == "prompt"
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("prompt", ["x", "a\nb", "日本", "🐶", "a" * MAX_PROMPT_CHARS, "!"])
def test_text_is_taken(prompt: str) -> None:
    check_prompt(prompt)


def test_encoding_is_the_encoders_and_comes_from_the_cache_again(
    model: CloudModel, run: Any
) -> None:
    target = Target(model.target, num_slots=1)
    prompts = PromptEncoder(model.encoder, model.condition_rows, cache_size=2)
    try:
        first = run(prompts.encode(PROMPT))
        (features,) = model.encoder.encode([PROMPT])
        assert torch.equal(first.features, features)
        assert torch.equal(first.rows, target.condition_rows(features))
        assert run(prompts.encode(PROMPT)) is first
        run(prompts.encode("a cat"))
        run(prompts.encode("a dog"))  # pushes the oldest out
        assert run(prompts.encode(PROMPT)) is not first
    finally:
        prompts.close()


def test_unknown_words_are_told(model: CloudModel) -> None:
    prompts = PromptEncoder(model.encoder, model.condition_rows)
    assert prompts.encode_now("a 🐶 dog").unknown_words == ("🐶",)
    assert prompts.encode_now(PROMPT).unknown_words == ()
    prompts.close()
