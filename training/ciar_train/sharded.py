"""A target whose layers are shared out among the processes of torchrun, for one that fits no GPU.

Every process keeps its share of each layer's weights, and a layer is put together while it works
(FSDP). So all processes must run the same number of forwards: see `model_images`.
"""

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ciar.errors import InvalidInput
from ciar.models.transformer import Trunk
from ciar_train.loop import World


def shard_layers(model: Trunk, world: World) -> None:
    """From weights on the CPU: no device ever holds more than its share and one layer.

    Embeddings and the output head stay whole. Raises `InvalidInput` without other processes.
    """
    if world.size == 1:
        raise InvalidInput(
            "shard-target",
            True,
            "start several processes: torchrun --nproc-per-node N -m -- ciar_train.cli ...",
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in model.layers:
        sharded = fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        sharded.unshard()  # once here: buffers made in inference mode could not be used out of it
        sharded.reshard()
