"""How to train drafts for targets that were made elsewhere: one TOML file a family."""

from dataclasses import dataclass
from pathlib import Path

from ciar.checkpoint import read_config
from ciar.errors import InvalidInput
from ciar.models.inter_head import InterHeadConfig
from ciar_train.draft import DraftPlan
from ciar_train.eagle import EaglePlan
from ciar_train.settings import names_in, read_settings

OF_FAMILY = {"llamagen": "llamagen-xl", "chameleon": "anole-7b"}


@dataclass(frozen=True, kw_only=True)
class EdgePlan:
    """A draft's stages and shape, and its head. eagle: of the drafter for comparisons."""

    draft: DraftPlan
    head: InterHeadConfig = InterHeadConfig()
    eagle: EaglePlan | None = None
    held_out: int = 256  # pictures, the last ones


def plan_names() -> list[str]:
    return names_in(__name__)


def load_plan(name: str | Path) -> EdgePlan:
    """A plan by name among those that come with the package, or by the path of a TOML file."""
    return read_settings(EdgePlan, __name__, name, field="plan")


def default_plan(model: Path) -> str:
    """That of the family of a bundle's target. Raises `InvalidInput`."""
    family = read_config(model / "cloud").get("family")
    if family not in OF_FAMILY:
        raise InvalidInput("plan", None, f"give a plan: there is none for the family {family!r}")
    return OF_FAMILY[family]
