"""A table of rows as the product of two small ones.

The embedding of a large model is much of a one-layer draft. r (V + D) numbers instead of V D:

    E = C U,    C [V, r], U [r, D]

    V codebook size   D width   r rank
"""

import torch
from torch import Tensor, nn


class LowRankEmbedding(nn.Module):
    """ids [...] -> rows [..., D]; in place of `nn.Embedding`."""

    def __init__(self, vocab_size: int, dim: int, rank: int) -> None:
        super().__init__()
        self.codes = nn.Embedding(vocab_size, rank)
        self.up = nn.Linear(rank, dim, bias=False)

    @property
    def weight(self) -> Tensor:
        """E, [V, D]."""
        table: Tensor = self.up(self.codes.weight)
        return table

    @torch.no_grad()
    def approximate(self, table: Tensor) -> None:
        """The best of this rank for a table [V, D], by its singular value decomposition."""
        left, values, right = torch.linalg.svd(table.float(), full_matrices=False)
        rank = self.codes.embedding_dim
        root = values[:rank].sqrt()  # shared out, so that both parts have like numbers
        self.codes.weight.copy_(left[:, :rank] * root)
        self.up.weight.copy_((root[:, None] * right[:rank]).T)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.up(self.codes(ids))
        return rows
