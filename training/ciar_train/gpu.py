"""What training does differently on a GPU, to keep it busy. Elsewhere these change nothing."""

import torch
from torch import Tensor

from ciar.models.transformer import Trunk


def compile_layers(model: Trunk, device: torch.device) -> None:
    """Fuse what each transformer layer does between its matrix products.

    Layers are compiled one by one, not the model as a whole: they are alike, so one compilation
    serves all of them.
    """
    if device.type != "cuda":
        return
    torch._dynamo.config.allow_unspec_int_on_nn_module = True  # a layer's number is not its code
    for layer in model.layers:
        layer.compile(dynamic=True)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without waiting for what the device does meanwhile.

    A copy from pageable memory would wait.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
