"""Families of models by the name in their configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ciar.checkpoint import from_dict
from ciar.errors import CheckpointError
from ciar.models.chameleon import Chameleon, ChameleonConfig, ChameleonDraft, ChameleonEagle
from ciar.models.eagle import EagleModel
from ciar.models.inter_head import DraftModel, InterHeadConfig
from ciar.models.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class Family:
    """Sizes, and the models that have them: target, draft with its head, drafter of EAGLE."""

    config: type[TransformerConfig]
    transformer: Callable[[Any], Transformer]
    draft: Callable[[Any, InterHeadConfig], DraftModel]
    eagle: Callable[[Any], EagleModel]


FAMILIES: Mapping[str, Family] = {
    TransformerConfig.family: Family(TransformerConfig, Transformer, DraftModel, EagleModel),
    ChameleonConfig.family: Family(ChameleonConfig, Chameleon, ChameleonDraft, ChameleonEagle),
}


def read_sizes(config: Mapping[str, Any], *, where: Path) -> TransformerConfig:
    """Of a target's or draft's `config.json`, as its family has them. Raises `CheckpointError`."""
    name = str(config.get("family"))
    if name not in FAMILIES:
        raise CheckpointError(f"{where}: family {name!r}, expected one of {', '.join(FAMILIES)}")
    return from_dict(FAMILIES[name].config, config["transformer"], where=f"{where}: transformer")


def make_transformer(config: TransformerConfig) -> Transformer:
    """With random weights."""
    return FAMILIES[config.family].transformer(config)


def make_draft(config: TransformerConfig, head: InterHeadConfig) -> DraftModel:
    """With random weights."""
    return FAMILIES[config.family].draft(config, head)


def make_eagle(config: TransformerConfig) -> EagleModel:
    """With random weights."""
    return FAMILIES[config.family].eagle(config)
