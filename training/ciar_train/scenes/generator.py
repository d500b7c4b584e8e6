"""Scenes by number: the same recipe, split and index give the same picture and captions.

Byte for byte, on every machine with the same versions of NumPy and Pillow, whoever else draws.
"""

from dataclasses import dataclass

from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.backgrounds import BackgroundBank
from ciar_train.scenes.captions import Captioner
from ciar_train.scenes.colour import Array
from ciar_train.scenes.nouns import choose_nouns
from ciar_train.scenes.plan import Plan, Planner, Split, check_recipe
from ciar_train.scenes.recipe import Recipe
from ciar_train.scenes.render import Renderer
from ciar_train.scenes.things import Box


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture with captions.

    Attributes:
        image: uint8 [size, size, 3].
        captions: different wordings of the same picture, maybe with repetitions.
        plan: what was decided to be in it.
        boxes: where the things were painted, from far to near; several for a count.
    """

    image: Array
    captions: tuple[str, ...]
    plan: Plan
    boxes: tuple[Box, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        """The kinds of things, at most two, in the order of the captions."""
        return tuple(thing.noun for thing in self.plan.things)

    @property
    def place(self) -> str:
        return self.plan.place

    @property
    def time(self) -> str:
        return self.plan.time

    @property
    def style(self) -> str:
        return self.plan.style

    @property
    def colour(self) -> str | None:
        """The colour that the first thing was tinted in, if it was."""
        return self.plan.things[0].colour if self.plan.things else None

    @property
    def relation(self) -> str | None:
        return self.plan.relation


class SceneGenerator:
    """Draws the scenes of a recipe.

    Args:
        atlas: the artwork.
        recipe: what may be in the pictures.
        split: "train" leaves out one pair of noun and place in 40, "test" draws only those, so
            that new combinations can be told from remembered ones; None draws everything.
        backgrounds: a bank built for the recipe; None paints every background anew.

    Raises:
        InvalidInput: the recipe names what there is not, or nothing can be drawn from it.
    """

    def __init__(
        self,
        atlas: Atlas,
        recipe: Recipe,
        *,
        split: Split | None = None,
        backgrounds: BackgroundBank | None = None,
    ) -> None:
        self.atlas = atlas
        self.recipe = recipe
        check_recipe(recipe, atlas)
        vocabulary = choose_nouns(recipe, atlas)
        self._planner = Planner(recipe, vocabulary, atlas, split=split)
        self._renderer = Renderer(recipe, vocabulary, atlas, backgrounds=backgrounds)
        self._captioner = Captioner(vocabulary)

    def sample(self, index: int, *, num_captions: int = 1) -> Scene:
        """Scene `index`, 0 and up.

        Raises:
            InvalidInput: the split holds no pair of noun and place of the recipe.
        """
        plan = self._planner.plan(index)
        image, boxes = self._renderer.render(plan)
        captions = tuple(self._captioner.caption(plan, k) for k in range(num_captions))
        return Scene(image=image, captions=captions, plan=plan, boxes=boxes)
