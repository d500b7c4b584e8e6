"""Scenes by number: the same recipe and index give the same picture and captions, always."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import _legacy as L
from .recipe import Recipe, RecipeError

Split = Literal["train", "test"]


class Atlas(L.Atlas):
    pass


@dataclass(frozen=True, kw_only=True)
class Scene:
    image: np.ndarray
    captions: tuple[str, ...]
    index: int
    nouns: tuple[str, ...]
    place: str
    time: str
    style: str
    boxes: tuple[Any, ...]
    colour: str | None
    relation: str | None


class _Gen(L.SceneGen):
    def __init__(s, atlas, recipe, split):
        s.recipe = r = recipe
        nouns = L.read_nouns(str(Path(__file__).with_name("nouns.txt")))
        for st in r.styles:
            if st not in atlas.styles:
                raise RecipeError(f"styles.{st}: the atlas has {', '.join(atlas.styles)}")
        for p in r.places or ():
            if p not in L.BG:
                raise RecipeError(f"places: {p!r} is unknown: use {', '.join(L.BG)}")
        for p in r.times or ():
            if p not in L.TIMES:
                raise RecipeError(f"times: {p!r} is unknown: use {', '.join(L.TIMES)}")
        s.places = tuple(p for p in L.BG if r.places is None or p in r.places)
        names = {n["noun"] for n in nouns}
        for n in r.nouns or ():
            if n not in names:
                raise RecipeError(f"nouns: {n!r} is unknown: nouns.txt lists those that can be drawn")
        s.atlas = atlas
        keep = []
        for n in nouns:
            if r.nouns is not None and n["noun"] not in r.nouns:
                continue
            drawable = any(any(atlas.has(k, e) for e in n["emoji"]) for k in r.styles)
            suits = set(L.SUIT[n["cat"]]) | {L.SPECIAL_BG.get(n["noun"])}
            if drawable and suits & set(s.places):
                keep.append(n)
            elif r.nouns is not None:
                raise RecipeError(f"nouns: {n['noun']!r} suits none of the places or styles")
        if not keep:
            raise RecipeError("no noun suits the places and styles")
        super().__init__(atlas=None, size=r.size, seed=r.seed, styles=dict(r.styles), nouns=keep, split=split, _atlas=atlas)

    def times(s, place):
        ts = L.BG[place][1]
        if s.recipe.times is None:
            return ts
        return tuple(t for t in ts if t in s.recipe.times) or ts[:1]

    def _bg(self, r, n):
        ok = self.places
        if n['noun'] in L.SPECIAL_BG and r.random() < (1 if n['noun'] in ('skier', 'snowboarder') else .38) and L.SPECIAL_BG[n['noun']] in ok: return L.SPECIAL_BG[n['noun']]
        G = [k for k in L.GROUND if k in ok]
        if r.random() < .08 and n['cat'] not in ('sea', 'ship', 'personw', 'sky', 'rail') and G: return G[int(r.integers(len(G)))]
        d = L.SUIT[n['cat']]; ks = [k for k in d if k in ok]; w = np.array([d[k] for k in ks], float)
        if not ks: return L.SPECIAL_BG[n['noun']]
        if 'w' in n['flags'] and n['cat'] == 'bird' and r.random() < .4 and 'lake' in ok: return 'lake'
        return ks[int(r.choice(len(ks), p=w / w.sum()))]

    def _plan(s, index, attempt=0):
        rc = s.recipe
        r = np.random.default_rng([s.seed, index] + ([attempt] if attempt else [])); q = r.random(); sp = dict(index=index, objs=[], rel=None)
        bgs = [k for k in s.places if L.PLACE_ONLY[k]]
        if q < .07 and bgs:
            sp['bg'] = bgs[int(r.integers(len(bgs)))]; sp['style'] = s._style(r, [])
        else:
            n = s._noun(r); sp['bg'] = s._bg(r, n); o = dict(noun=n['noun'], count=1, size=None, color=None, pos=None)
            two = r.random() < .17 and rc.two_objects
            if not two:
                k = r.random(); solid = n['cat'] not in ('building', 'sky') or r.random() < .25
                if k > .70 and solid and 'p' not in n['flags'] and n['noun'] not in L.MASS: o['count'] = 2 if k < .83 else 3 if k < .94 else int(r.integers(4, 7))
                o['count'] = min(o['count'], rc.max_count)
                if r.random() < .2: o['size'] = 'small' if r.random() < .5 else 'big'
                if r.random() < .16 and o['count'] == 1: o['pos'] = ['left', 'right', 'center'][int(r.integers(3))]
            if 't' in n['flags'] and r.random() < .42: o['color'] = list(L.COLORS)[int(r.integers(len(L.COLORS)))]
            sp['objs'].append(o)
            if two: s._second(r, sp, n)
            sp['style'] = s._style(r, [s.by[x['noun']]['emoji'] for x in sp['objs']])
        ts = s.times(sp['bg'])
        for o in sp['objs']:
            f = L.FORCE_TIME.get(o['noun'])
            if f:
                ok = [t for t in f if t in ts]
                if ok: ts = ok
        sp['time'] = ts[int(r.integers(len(ts)))]
        sp['color'] = list(L.PLAIN)[int(r.choice(len(L.PLAIN), p=np.array([6, 1.5, 1.5, 1, 1, 1.2, 1.2, 2, 1.5, 1, 1, .6]) / 19.5))] if sp['bg'] == 'plain' else None
        sp['seed'] = int(r.integers(2 ** 31)); sp['cseed'] = int(r.integers(2 ** 31)); return sp

    def plan(s, index):
        for k in range(10000):
            sp = s._plan(index, k); h = any(s.held_out(o['noun'], sp['bg']) for o in sp['objs'])
            if s.split is None or (s.split == 'test') == h: return sp
        raise RecipeError(f"split {s.split!r} holds no (noun, place) pair of this recipe")


class BackgroundBank(L.BgBank):
    @staticmethod
    def build(generator, path, *, per=2):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        L.BgBank.build(generator._gen, str(path), per)
        return BackgroundBank(str(path))

    @staticmethod
    def open(path):
        return BackgroundBank(str(path))


class SceneGenerator:
    def __init__(self, atlas, recipe, *, split=None, backgrounds=None):
        self.recipe = recipe
        self._gen = _Gen(atlas, recipe, split)
        self._gen.bank = backgrounds

    def sample(self, index, *, num_captions=1):
        sp = self._gen.plan(index)
        image, boxes = self._gen.render(sp)
        captions = tuple(self._gen.caption(sp, k) for k in range(num_captions))
        return Scene(
            image=image, captions=captions, index=index, nouns=tuple(o["noun"] for o in sp["objs"]),
            place=sp["bg"], time=sp["time"], style=sp["style"], boxes=tuple(boxes),
            colour=sp["color"], relation=sp["rel"],
        )
