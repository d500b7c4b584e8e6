"""How many sessions may have their KV memory at a time: by count, by bytes, or by what is free."""

import os
import re
from functools import partial

import torch

from ciar.errors import InvalidInput
from ciar.models.inter_head import DraftModel
from ciar.models.kv_cache import KVCache
from ciar.static_steps import NUM_SPARE
from ciar.target import Target, TargetModel
from ciar_cloud import container

CPU_SLOTS, GPU_SLOTS = 16, 64  # most slots chosen by themselves
MEMORY_SHARE = 0.25  # of what is free, for the slots
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def read_bytes(text: str) -> int:
    """`2GiB`, `500MB` or a number of bytes; empty or 0: no budget. Raises `InvalidInput`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]i?|)B?", text.strip() or "0")
    if found is None:
        raise InvalidInput("kv-budget", text, "give bytes, such as 2GiB or 500MB, or 0 for none")
    return int(float(found[1]) * UNITS[found[2]])


def choose_slots(
    model: TargetModel,
    draft: DraftModel | None = None,
    *,
    slots: int,
    kv_budget: int,
    has_static_steps: bool = False,
) -> int:
    """As many as are asked for and fit the budget; without either, as many as fit a quarter of the
    free memory, up to a limit.

    draft: recomputes features, with keys and values of its own.
    slots, kv_budget: 0 where they are not given, the latter in bytes. Raises `InvalidInput` for a
    budget below one session.
    """
    weight = model.transformer.tok_embeddings.weight
    each = slot_bytes(model, draft, has_static_steps=has_static_steps)
    if kv_budget:
        num_spare = int(has_static_steps)  # slots that no session gets
        in_budget = kv_budget // each - num_spare
        if in_budget < 1:
            least = (1 + num_spare) * each
            remedy = f"give at least {-(-least // 2**20)}MiB: one session takes {least} bytes"
            raise InvalidInput("kv-budget", f"{kv_budget} bytes", remedy)
        return min(slots or in_budget, in_budget)
    if slots:
        return slots
    if weight.device.type == "cuda":
        free, most = torch.cuda.mem_get_info(weight.device)[0], GPU_SLOTS
    else:
        free, most = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), CPU_SLOTS
        free = min(free, container.free_bytes())
    return max(1, min(most, int(free * MEMORY_SHARE) // each))


def slot_bytes(
    model: TargetModel, draft: DraftModel | None = None, *, has_static_steps: bool = False
) -> int:
    """KV memory of one session."""
    dtype = model.transformer.tok_embeddings.weight.dtype
    num_spare = NUM_SPARE * has_static_steps
    one = partial(KVCache, num_slots=1, device="meta")
    own = one(model.config, num_rows=Target.ROWS, num_spare=num_spare, dtype=dtype).num_bytes
    return own + one(draft.config, num_rows=1).num_bytes if draft else own
