from torch import Tensor

from ciar.packing import PackedDtype, pack, unpack


def round_features(tensor: Tensor, dtype: PackedDtype) -> Tensor:
    """What the other side reads when `tensor` is sent as `dtype`."""
    return unpack(pack(tensor, dtype))
