"""What followed the same tokens elsewhere: tables of n-grams on the grid, counted once.

The n tokens nearest to a position are its context. A table holds, by a hash of the context, the
token that most often came next in the pictures it was counted on. It knows at once what a layer
would have to memorise example by example; a model reads the followers with its input and judges
for itself how far to trust them.

    key(p)      = sum_k (x at the k-th place around p + 1) f_k         mod 2^64
    entry       = follower * num_tags + tag                            16 bits; 65535: empty
    follower(p) = that of the slot of key(p), where the tag is the key's own; else V: unknown

    J tables   R slots of each   K places   V codebook size
"""

import torch
from torch import Tensor, nn

EMPTY = 0xFFFF
MAX_SLOTS = 1 << 24
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
WORD = 1 << 64


def signed(word: int) -> int:
    """64 bits as torch's int64 has them."""
    return word - WORD if word >= WORD >> 1 else word


def factors(count: int) -> list[int]:
    """f_1 .. f_count: odd, so that no token is lost."""
    return [pow(GOLDEN, 2 * k + 1, WORD) for k in range(count)]


class NgramTables(nn.Module):
    """`entries` is counted, not trained (see `ciar_train.ngrams`), and saved with the weights."""

    entries: Tensor
    factors: Tensor

    def __init__(self, orders: tuple[int, ...], *, num_slots: int, vocab_size: int) -> None:
        """orders: the number of tokens in the contexts of each table."""
        super().__init__()
        self.orders = orders
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.num_tags = EMPTY // vocab_size
        shape = (len(orders), num_slots)
        self.register_buffer("entries", torch.full(shape, -1, dtype=torch.int16))
        self.register_buffer("factors", torch.empty(0), persistent=False)
        self.rebuild_tables("cpu")

    def rebuild_tables(self, device: torch.device | str) -> None:
        """The factors are not in the weights."""
        with torch.device("cpu"):
            values = torch.tensor([signed(f) for f in factors(max(self.orders))])
        self.factors = values.to(device)  # [K] int64

    def places(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Slots and tags [..., J] of the contexts in tokens [..., K], the nearest token first."""
        sums = ((tokens[..., : len(self.factors)] + 1) * self.factors).cumsum(-1)
        keys = torch.stack([sums[..., n - 1] for n in self.orders], dim=-1)
        keys = (keys ^ ((keys >> 31) & ((WORD >> 31) - 1))) * signed(GOLDEN)
        return (keys >> 40) & (self.num_slots - 1), ((keys >> 16) & 0xFFFFFF) % self.num_tags

    def forward(self, tokens: Tensor) -> Tensor:
        """Followers [..., J] of the contexts in tokens [..., K], V where unknown."""
        slots, tags = self.places(tokens)
        tables = torch.arange(len(self.orders), device=slots.device)
        entries = self.entries[tables, slots].long() & EMPTY
        is_known = (entries % self.num_tags == tags) & (entries < self.vocab_size * self.num_tags)
        return torch.where(is_known, entries // self.num_tags, self.vocab_size)


class NgramLookup:
    """`NgramTables` for one position at a time, in plain integers: no call into torch."""

    def __init__(self, tables: NgramTables) -> None:
        self.orders = tables.orders
        self.last_slot = tables.num_slots - 1
        self.unknown = tables.vocab_size
        self.num_tags = tables.num_tags
        self.factors = factors(max(tables.orders))
        rows = tables.entries.contiguous().numpy()
        self.rows = [memoryview(row).cast("B").cast("H") for row in rows]

    def followers(self, tokens: list[int]) -> list[int]:
        """[J] for a context [K], the nearest token first."""
        found, total, start = [], 0, 0
        for order, row in zip(self.orders, self.rows, strict=True):
            for k in range(start, order):
                total += (tokens[k] + 1) * self.factors[k]
            start = order
            key = total % WORD
            key = (key ^ (key >> 31)) * GOLDEN % WORD
            follower, tag = divmod(row[(key >> 40) & self.last_slot], self.num_tags)
            is_known = tag == ((key >> 16) & 0xFFFFFF) % self.num_tags and follower < self.unknown
            found.append(follower if is_known else self.unknown)
        return found
