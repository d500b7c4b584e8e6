"""Decoding methods to compare, one file each, over the same target and drafters.

A method is named by its defaults or by what differs from them: `lantern`, `lantern:delta=0.4`,
`random:budget=0.5`, `eagle-1:length=6`, `lantern++:levels=[5,13,16,14,9]`.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from ciar.errors import InvalidInput
from ciar.router import ROUTERS
from ciar.types import SamplingParams
from ciar_bench.methods.autoregressive import Autoregressive
from ciar_bench.methods.bench_model import BenchModel, eagle_folder
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


class Kind(NamedTuple):
    """make: a method, of its settings.  drafter: the part of a bundle that proposes its tokens."""

    make: Callable[..., Method]
    drafter: str | None = None


KINDS: dict[str, Kind] = {
    "base": Kind(Autoregressive),
    "exact": Kind(Exact, "edge"),
    "eagle-1": Kind(Eagle1, "eagle"),
    "eagle-2": Kind(Eagle2, "eagle"),
    "lantern": Kind(Lantern, "eagle"),
    "lantern++": Kind(LanternStatic, "eagle"),
    "code": Kind(CoDe, "edge"),
    "jacobi": Kind(Jacobi),
    "wavefront": Kind(Wavefront),
    **{router: Kind(partial(Selective, router=router), "edge") for router in ROUTERS},
}
BETWEEN_SETTINGS = re.compile(r",(?![^\[]*\])")  # commas, but those of a list


def kind_of(spec: str) -> Kind:
    """Of a method as `make_method` takes it. Raises `InvalidInput`."""
    name = spec.partition(":")[0]
    if name not in KINDS:
        raise InvalidInput("method", name, f"give one of {', '.join(KINDS)}")
    return KINDS[name]


def make_method(spec: str) -> Method:
    """`NAME` or `NAME:FIELD=VALUE,...`, values as in JSON. Raises `InvalidInput`."""
    kind, settings = kind_of(spec), spec.partition(":")[2]
    try:
        pairs = (text.split("=", 1) for text in BETWEEN_SETTINGS.split(settings) if text)
        values = {field: json.loads(value) for field, value in pairs}
        return kind.make(
            **{field: tuple(v) if isinstance(v, list) else v for field, v in values.items()}
        )
    except (TypeError, ValueError) as error:
        raise InvalidInput("method", spec, f"give NAME:FIELD=VALUE,...: {error}") from error


def shortest(spec: str) -> str:
    """The one spelling of the same method that leaves its defaults out. Raises `InvalidInput`."""
    name = spec.partition(":")[0]
    usual = vars(make_method(name))
    settings = [
        f"{field}={json.dumps(value)}"
        for field, value in vars(make_method(spec)).items()
        if value != usual[field]
    ]
    return f"{name}:{','.join(settings)}" if settings else name


def parts_of(spec: str) -> list[str]:
    """The folders of a bundle that make a method's pictures: its drafter's, and those of all."""
    drafter = kind_of(spec).drafter
    return ["cloud", *([drafter] if drafter else []), "vq", "text"]


def check_drafter(spec: str, bundle: Path) -> None:
    """Raise `CheckpointError` if the method needs a drafter of EAGLE that the bundle lacks."""
    if kind_of(spec).drafter == "eagle":
        eagle_folder(bundle)
