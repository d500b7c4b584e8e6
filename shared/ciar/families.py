"""Families of target models by the name in their configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ciar.checkpoint import from_dict
from ciar.errors import CheckpointError
from ciar.models.chameleon import Chameleon, ChameleonConfig
from ciar.models.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class Family:
    """Sizes, and the transformer that has them."""

    config: type[TransformerConfig]
    transformer: Callable[[Any], Transformer]


FAMILIES: Mapping[str, Family] = {
    TransformerConfig.family: Family(TransformerConfig, Transformer),
    ChameleonConfig.family: Family(ChameleonConfig, Chameleon),
}


def read_sizes(config: Mapping[str, Any], *, where: Path) -> TransformerConfig:
    """Of a target's `config.json`, as its family has them. Raises `CheckpointError`."""
    name = str(config.get("family"))
    if name not in FAMILIES:
        raise CheckpointError(f"{where}: family {name!r}, expected one of {', '.join(FAMILIES)}")
    return from_dict(FAMILIES[name].config, config["transformer"], where=f"{where}: transformer")


def make_transformer(config: TransformerConfig) -> Transformer:
    """With random weights."""
    return FAMILIES[config.family].transformer(config)
