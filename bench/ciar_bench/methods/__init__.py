"""Decoding methods to compare, one file each, over the same target and drafters.

A method is named by its defaults or by what differs from them: `lantern`, `lantern:delta=0.4`,
`random:budget=0.5`, `eagle-1:length=6`.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Protocol

from ciar.errors import InvalidInput
from ciar.router import ROUTERS
from ciar.types import SamplingParams
from ciar_bench.methods.autoregressive import Autoregressive
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.code import CoDe
from ciar_bench.methods.costs import DrawnImage
from ciar_bench.methods.eagle1 import Eagle1
from ciar_bench.methods.eagle2 import Eagle2
from ciar_bench.methods.exact import Exact
from ciar_bench.methods.jacobi import Jacobi
from ciar_bench.methods.lantern import Lantern
from ciar_bench.methods.lantern_static import LanternStatic
from ciar_bench.methods.selective import Selective
from ciar_bench.methods.wavefront import Wavefront


class Method(Protocol):
    """A way to draw an image, with its settings."""

    @property
    def name(self) -> str: ...

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage: ...


KINDS: dict[str, Callable[..., Method]] = {
    "base": Autoregressive,
    "exact": Exact,
    "eagle-1": Eagle1,
    "eagle-2": Eagle2,
    "lantern": Lantern,
    "lantern++": LanternStatic,
    "code": CoDe,
    "jacobi": Jacobi,
    "wavefront": Wavefront,
    **{router: partial(Selective, router=router) for router in ROUTERS},
}


def make_method(spec: str) -> Method:
    """`NAME` or `NAME:FIELD=VALUE,...`, values as in JSON. Raises `InvalidInput`."""
    name, _, settings = spec.partition(":")
    if name not in KINDS:
        raise InvalidInput("method", name, f"give one of {', '.join(KINDS)}")
    try:
        pairs = (setting.split("=", 1) for setting in settings.split(",") if setting)
        return KINDS[name](**{field: json.loads(value) for field, value in pairs})
    except (TypeError, ValueError) as error:
        raise InvalidInput("method", spec, f"give NAME:FIELD=VALUE,...: {error}") from error
