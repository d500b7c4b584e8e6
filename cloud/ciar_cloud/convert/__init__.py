"""Public checkpoints to model folders: `ciar-cloud convert`."""
