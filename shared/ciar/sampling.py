"""Coupled sampling: edge and cloud draw with the same noise.

So a drafted token is right exactly when the two draws are equal.

    x_t = argmax_v( logit_v / temperature + G(seed, t, v) ),    G = -log(-log u)

u comes from Philox, keyed by the image's seed, with the absolute token position as counter: never
from a shared generator, so batch neighbours, retries and replicas change nothing. Tokens filtered
out are -inf.

    V codebook size
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ciar.types import SamplingParams

MAX_NOISE_VALUES = 2**23  # kept in memory ahead of use, an image: 64 MiB


def scale_at(positions: Tensor, cfg_scale: float, cfg_interval: int) -> float | Tensor:
    """The guidance scale of tokens at `positions` [n]: one for all, or [n, 1].

    An interval c of 0 or more guides tokens 0 to c + 1, and those behind them not (scale 1).
    """
    if cfg_interval < 0:
        return cfg_scale
    scales = torch.where(positions <= cfg_interval + 1, cfg_scale, 1.0)
    return scales[:, None]


def guide(cond: Tensor, uncond: Tensor, cfg_scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, [..., V] float32: `uncond + cfg_scale (cond - uncond)`.

    This is the *model view* of the cloud.
    """
    cond, uncond = cond.float(), uncond.float()
    return torch.lerp(uncond, cond, cfg_scale)


def filter_logits(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The *sampling view*: temperature, then top-k, then top-p.

    Ties with the k-th logit stay, and so does the token that crosses top_p. Temperature 0 leaves
    logits unscaled.

    logits [..., V] -> [..., V] float32 with -inf for tokens that cannot be drawn.
    """
    logits = logits.float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        is_beyond = mass.cumsum(-1) - mass >= top_p  # the mass before the token reaches it already
        logits = logits.masked_fill(is_beyond.scatter(-1, order, is_beyond), -torch.inf)
    return logits


def random_bits(seed: int, position: int, vocab_size: int) -> np.ndarray:
    """What the noise of a position is made of, uint64 [V]."""
    key = np.array([seed, 0], dtype=np.uint64)  # a plain list would go through float64
    bits: np.ndarray = np.random.Philox(counter=[0, 0, 0, position], key=key).random_raw(vocab_size)
    return bits


def gumbel(bits: np.ndarray) -> np.ndarray:
    """G of each, float32.

    u has 53 random bits and is never 0 or 1: a float32 u would clip G near 17, which a codebook of
    16384 reaches.
    """
    u = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: np.ndarray = (-np.log(-np.log(u))).astype(np.float32)
    return noise


def gumbel_noise(seed: int, position: int, vocab_size: int) -> Tensor:
    """G(seed, position, 0..V-1), [V] float32."""
    return torch.from_numpy(gumbel(random_bits(seed, position, vocab_size)))


def noise_rows(seeds: Sequence[int], positions: Sequence[int], vocab_size: int) -> Tensor:
    """Noise of several (seed, position) pairs, [len, V] float32."""
    rows = [gumbel_noise(s, p, vocab_size) for s, p in zip(seeds, positions, strict=True)]
    return torch.stack(rows)


class Noise:
    """G(seed, position, .) of one image; its random bits are drawn ahead of need or on demand."""

    def __init__(self, seed: int, *, vocab_size: int) -> None:
        self._seed = seed
        self._vocab_size = vocab_size
        self._rows: dict[int, np.ndarray] = {}  # bits
        self.max_rows = MAX_NOISE_VALUES // vocab_size

    def prepare(self, position: int) -> None:
        """Draw the bits of `position` now, if there is room for them."""
        if position not in self._rows and len(self._rows) < self.max_rows:
            self._rows[position] = self._draw(position)

    def at(self, position: int, ids: np.ndarray) -> np.ndarray:
        """Of tokens [n], float32 [n]: the logarithms of these alone."""
        bits = self._rows.get(position)
        return gumbel((self._draw(position) if bits is None else bits)[ids])

    def forget(self, positions: Iterable[int]) -> None:
        """Free what was drawn for positions that are not needed again."""
        for position in positions:
            self._rows.pop(position, None)

    def _draw(self, position: int) -> np.ndarray:
        return random_bits(self._seed, position, self._vocab_size)


class Perturbed(NamedTuple):
    """The scores that a coupled draw takes the largest of: sampling view plus noise.

    ids, scores: of the tokens that can be drawn, in any order.
    """

    ids: np.ndarray
    scores: np.ndarray

    @property
    def best(self) -> int:
        """The token that is drawn."""
        return int(self.ids[self.scores.argmax()])

    def gap(self, token: int) -> float:
        """How far it falls short of the best one, in nats; infinite where it cannot be drawn."""
        at = np.flatnonzero(self.ids == token)
        return float(self.scores.max() - self.scores[at[0]]) if len(at) else math.inf


def coupled_draw(
    logits: Tensor, position: int, params: SamplingParams, noise: Noise | None = None
) -> int:
    """The token at `position` from model-view logits [V].

    Distributed as their sampling view, fixed by the seed. noise: that of the seed, if somebody may
    have drawn it before.
    """
    noise = noise or Noise(params.seed, vocab_size=logits.shape[-1])
    return perturb(logits, position, params, noise).best


def coupled_gap(
    logits: Tensor, position: int, params: SamplingParams, noise: Noise, *, token: int
) -> tuple[int, float]:
    """The token that `coupled_draw` gives, and how far another one's perturbed score falls short.

    In nats; infinite for a token that cannot be drawn. If a token is taken in place of the draw
    wherever its gap is at most epsilon, none is taken more than e^epsilon times as often as it is
    drawn, however the token was found: its own score has to reach the best of all less epsilon.
    """
    found = perturb(logits, position, params, noise)
    return found.best, found.gap(token)


def perturb(logits: Tensor, position: int, params: SamplingParams, noise: Noise) -> Perturbed:
    """From model-view logits [V]; the noise is that of the tokens alone which pass the filters."""
    ids, view = sampling_view(logits, params)
    return Perturbed(ids, view + noise.at(position, ids) if params.temperature else view)


def sampling_view(logits: Tensor, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that can be drawn of logits [V], and what `filter_logits` makes of theirs."""
    temperature, top_k, top_p = params.temperature, params.top_k, params.top_p
    if temperature and 0 < top_k < logits.shape[-1]:  # without looking at all V again
        view, ids = (found.cpu().numpy() for found in logits.float().topk(top_k + 1))
        view /= np.float32(temperature)
        if view[-2] > view[-1]:  # nothing ties with the k-th
            view, ids = view[:-1], ids[:-1]
            if top_p < 1:
                view = filtered(torch.from_numpy(view), temperature=1.0, top_k=0, top_p=top_p)
                ids, view = ids[np.isfinite(view)], view[np.isfinite(view)]
            return ids, view
    view = filtered(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    ids = np.flatnonzero(np.isfinite(view))
    return ids, view[ids]


def filtered(logits: Tensor, **filters: Any) -> np.ndarray:
    """`filter_logits` of [V]."""
    view: np.ndarray = filter_logits(logits, **filters).cpu().numpy()
    return view


def coupled_agreement(p: Tensor, q: Tensor) -> Tensor:
    """The probability that coupled draws from p and q are equal, [...].

    It is `sum_j 1 / sum_i max(p_i / p_j, q_i / q_j)` for distributions p, q [..., V], in O(V log V)
    by sorting the ratios `R = p / q` (Daliri, Musco, Suresh, 2024).
    """
    order = (p.log() - q.log()).nan_to_num(0.0).argsort(dim=-1)  # ascending p/q
    p, q = p.gather(-1, order).double(), q.gather(-1, order).double()
    p_at_least = p.flip(-1).cumsum(-1).flip(-1)  # P(R >= R_j): there p_i / p_j is the larger
    q_below = q.cumsum(-1) - q  # Q(R < R_j)
    terms = 1 / (p_at_least / p + q_below / q)
    return terms.nan_to_num(0.0).sum(-1)
