"""How one kind of thing, or two in a relation, are spread over a picture."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.canvas import Zones
from ciar_train.scenes.nouns import Noun, Vocabulary
from ciar_train.scenes.placement import Placement, Stance, choose_emoji, stance
from ciar_train.scenes.places import find_place
from ciar_train.scenes.plan import Plan, Thing

_HEIGHTS: Mapping[str, tuple[float, float]] = {
    "S": (0.30, 0.44),
    "M": (0.38, 0.54),
    "L": (0.44, 0.62),
    "X": (0.52, 0.74),
}
_SHRINK = {1: 1, 2: 0.74, 3: 0.58, 4: 0.44, 5: 0.40, 6: 0.36}  # by the count
_GROUND = (0.8, 0.93)  # where a place has none


class Layout:
    """Places the things of one plan. Every choice is drawn from the generator handed in."""

    def __init__(
        self,
        plan: Plan,
        zones: Zones,
        rng: np.random.Generator,
        *,
        vocabulary: Vocabulary,
        atlas: Atlas,
        mirrored: bool,
    ) -> None:
        self._plan = plan
        self._zones = zones
        self._rng = rng
        self._vocabulary = vocabulary
        self._atlas = atlas
        self._mirrored = mirrored
        self._kind = find_place(plan.place).kind

    def placements(self) -> list[Placement]:
        """The plan's things from far to near."""
        if len(self._plan.things) == 2:
            placements = self._two(self._plan.things[0], self._plan.things[1])
        else:
            placements = [each for thing in self._plan.things for each in self._row(thing)]
        return sorted(placements, key=lambda each: (each.depth, each.base))

    def _may_flip(self, noun: Noun) -> bool:
        return self._mirrored and not noun.is_one_sided

    # ---- one kind of thing

    def _row(self, thing: Thing) -> list[Placement]:
        """Up to three side by side, more in two rows."""
        rng, count = self._rng, thing.count
        noun = self._vocabulary[thing.noun]
        how = stance(self._plan, noun)
        height = self._height(thing, noun, how)
        xs = self._columns(thing)
        emoji = choose_emoji(rng, self._atlas, self._plan.style, noun)
        is_flipped = rng.random() < 0.5
        are_alike = rng.random() < 0.75
        has_two_rows = count > 3
        placements = []
        for i in range(count):
            row = i // len(xs) if has_two_rows else 0
            shift = 0.06 * (row - 0.5) if has_two_rows else 0
            smaller = 0.85 if has_two_rows and row == 0 else 1.0
            own_height = height * rng.uniform(0.92, 1.08) * smaller
            base = self._base(how, own_height, row if has_two_rows else None)
            if not are_alike:
                is_flipped = rng.random() < 0.5
                emoji = choose_emoji(rng, self._atlas, self._plan.style, noun)
            placements.append(
                Placement(
                    thing=thing,
                    noun=noun,
                    emoji=emoji,
                    x=xs[i % len(xs)] + shift,
                    base=base,
                    height=own_height,
                    max_width=0.94 / len(xs),
                    stance=how,
                    depth=row,
                    is_flipped=is_flipped and self._may_flip(noun),
                )
            )
        return placements

    def _height(self, thing: Thing, noun: Noun, how: Stance) -> float:
        low, high = _HEIGHTS[noun.size]
        if self._kind in ("plain", "surface"):
            low, high = max(low, 0.42), max(high, 0.62)
        if how == "portrait":
            low, high = 0.52, 0.68
        if noun.category == "sky":
            low, high = (0.24, 0.42) if noun.name in ("rainbow", "cloud") else (0.16, 0.26)
        shrink = _SHRINK[thing.count]
        if thing.size == "small":
            low, high = 0.15, 0.24
            shrink = min(1, shrink * 1.25)
        elif thing.size == "big":
            low, high = (0.72, 0.85) if how == "portrait" else (0.66, 0.84)
        return self._rng.uniform(low, high) * shrink

    def _columns(self, thing: Thing) -> list[float]:
        rng, count = self._rng, thing.count
        if count == 1:
            left, right = rng.uniform(0.2, 0.28), rng.uniform(0.72, 0.8)
            anywhere = rng.uniform(0.34, 0.66)
            positions = {"left": left, "right": right, "center": 0.5, None: anywhere}
            return [positions[thing.position]]
        columns = count if count <= 3 else (count + 1) // 2
        xs = [(i + 0.5) / columns + rng.normal(0, 0.02) for i in range(columns)]
        return [0.5 + (x - 0.5) * 0.96 for x in xs] if count <= 3 else xs

    def _base(self, how: Stance, height: float, row: int | None = None) -> float:
        """The y of a foot; `row` is 0 or 1 in two rows, None otherwise."""
        if how == "portrait":
            return 1.0
        if how == "air":
            return self._base_in_air(height, row)
        if how == "float":
            centre = self._rng.uniform(0.42, 0.58) if row is None else 0.3 + 0.4 * row
            return min(max(centre, height / 2 + 0.03), 0.97 - height / 2) + height / 2
        if how == "water" and self._zones.water:
            top, bottom = self._zones.water
            if height >= 0.4:
                top = max(top, min(bottom, 0.6))
            return max(self._rng.uniform(top, bottom), min(height + 0.03, bottom))
        top, bottom = self._zones.ground or _GROUND
        if how == "bottom":
            return self._rng.uniform(0.88, 0.96)
        share = self._rng.uniform(0.3, 1) if row is None else 0.05 + 0.9 * row
        return min(max(top + (bottom - top) * share, height + 0.02), 0.97)

    def _base_in_air(self, height: float, row: int | None) -> float:
        top, bottom = self._zones.floating or self._zones.sky
        lowest = max(height / 2 + 0.03, 0.66 - height / 2)
        if self._kind == "sky":
            top, bottom = 0.2, 0.8
            lowest = 0.97 - height / 2
        if row is None:
            centre = self._rng.uniform(top, bottom)
        else:
            centre = 0.3 + 0.36 * row + self._rng.normal(0, 0.03)
        return min(max(centre, height / 2 + 0.03), lowest) + height / 2

    # ---- two things in a relation

    def _two(self, first: Thing, second: Thing) -> list[Placement]:
        relation = self._plan.relation
        if relation == "in front of":
            return self._before(near=first, far=second)
        if relation == "behind":
            return self._before(near=second, far=first)
        if relation == "under" and self._vocabulary[second.noun].category == "plant":
            return self._sheltered(first, tree=second)
        if relation == "under":
            return self._stacked(upper=second, lower=first)
        if relation == "above":
            return self._stacked(upper=first, lower=second)
        return self._beside(first, second)

    def _random_height(self, thing: Thing, scale: float) -> float:
        low, high = _HEIGHTS[self._vocabulary[thing.noun].size]
        return self._rng.uniform(low, high) * scale

    def _aside(self, x: float, spread: tuple[float, float], limits: tuple[float, float]) -> float:
        """A place to the left or right of x."""
        side = self._rng.choice([-1, 1])
        moved: float = np.clip(x + side * self._rng.uniform(*spread), *limits)
        return moved

    def _place(
        self,
        thing: Thing,
        x: float,
        height: float,
        *,
        base: float | None = None,
        how: Stance | None = None,
        depth: int = 1,
        max_width: float = 0.48,
    ) -> Placement:
        noun = self._vocabulary[thing.noun]
        usual = stance(self._plan, noun)
        how = how or usual
        emoji = choose_emoji(self._rng, self._atlas, self._plan.style, noun)
        if how == "portrait" or (how == "ground" and noun.is_head and usual == "portrait"):
            how, base, depth = "portrait", 1.0, depth + 1
            height = self._rng.uniform(0.36, 0.44)
        elif base is None:
            base = self._base(how, height)
        is_flipped = self._rng.random() < 0.5
        return Placement(
            thing=thing,
            noun=noun,
            emoji=emoji,
            x=x,
            base=base,
            height=height,
            max_width=max_width,
            stance=how,
            depth=depth,
            is_flipped=is_flipped and self._may_flip(noun),
        )

    def _beside(self, first: Thing, second: Thing) -> list[Placement]:
        relation, rng = self._plan.relation, self._rng
        is_left = relation == "left of" or (relation in ("and", "next to") and rng.random() < 0.5)
        placements = []
        xs = (0.27, 0.73) if is_left else (0.73, 0.27)
        for thing, x in zip((first, second), xs, strict=True):
            jittered = x + rng.normal(0, 0.02)
            placements.append(self._place(thing, jittered, self._random_height(thing, 0.76)))
        return placements

    def _before(self, *, near: Thing, far: Thing) -> list[Placement]:
        top, _ = self._zones.ground or _GROUND
        far_height = self._random_height(far, 1.08)
        base = max(top + 0.02, far_height + 0.02)
        near_height = min(self._random_height(near, 0.72), 0.42)
        x = self._rng.uniform(0.36, 0.64)
        behind = self._place(far, x, far_height, base=base, how="ground", depth=0, max_width=0.9)
        near_x = self._aside(x, (0.05, 0.2), (0.25, 0.75))
        near_base = self._rng.uniform(0.90, 0.96)
        front = self._place(near, near_x, near_height, base=near_base, how="ground", max_width=0.5)
        return [behind, front]

    def _sheltered(self, thing: Thing, *, tree: Thing) -> list[Placement]:
        top, _ = self._zones.ground or _GROUND
        tree_height = self._rng.uniform(0.72, 0.86)
        base = max(top + 0.04, tree_height + 0.02)
        x = self._rng.uniform(0.4, 0.6)
        behind = self._place(
            tree, x, tree_height, base=min(base, 0.93), how="ground", depth=0, max_width=0.9
        )
        near_x = self._aside(x, (0.1, 0.16), (0.2, 0.8))
        height = min(self._random_height(thing, 0.62), 0.36)
        base = self._rng.uniform(0.92, 0.96)
        near = self._place(thing, near_x, height, base=base, how="ground", max_width=0.4)
        return [behind, near]

    def _stacked(self, *, upper: Thing, lower: Thing) -> list[Placement]:
        rng = self._rng
        x = rng.uniform(0.38, 0.62)
        lower_height = min(self._random_height(lower, 0.78), 0.46)
        upper_height = min(self._random_height(upper, 0.66), 0.34)
        low = self._place(lower, x, lower_height, max_width=0.6)
        if low.stance == "air":
            low = replace(low, stance="ground", base=0.92)
        elif low.stance == "ground":
            low = replace(low, base=max(low.base, 0.86))
        clear = low.base - lower_height - upper_height / 2 - 0.03
        centre = max(upper_height / 2 + 0.02, min(clear, rng.uniform(0.14, 0.3)))
        upper_x = np.clip(x + rng.normal(0, 0.07), 0.25, 0.75)
        base = centre + upper_height / 2
        high = self._place(
            upper, upper_x, upper_height, base=base, how="air", depth=2, max_width=0.55
        )
        return [low, high]
