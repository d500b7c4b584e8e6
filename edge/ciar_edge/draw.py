"""One image from options to pixels: the edge's half of a model, loaded and wired together."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ciar.certificate import Certificate, check_risk, read_certificate
from ciar.checkpoint import find_model, fingerprint, read_sampling
from ciar.errors import CheckpointError, InvalidInput
from ciar.models.wordpiece import words
from ciar.picture import Painter
from ciar.router import DEFAULT_ROUTER, Router, make_router
from ciar.text import TextFeatures, load_text
from ciar.types import MAX_SEED, SamplingParams
from ciar_edge.config import DecodeConfig
from ciar_edge.connection import Access, RemoteConfig, check_address
from ciar_edge.embedded import EmbeddedCloud, num_cores
from ciar_edge.image import Drawing, warnings_of
from ciar_edge.loop import generate
from ciar_edge.models import EdgeModel, load_draft_model
from ciar_edge.remote import RemoteVerifier
from ciar_edge.result import ImageResult, Observer, Origin
from ciar_edge.risk_file import RiskFile

MAX_PROMPT_CHARS = 1000  # offline; else the cloud says


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """What the user asked for; None leaves the choice to the checkpoint, or to the default.

    cloud: address of a cloud; None: the embedded one, or none at all when offline.
    max_risk: a static threshold by the model's certificate, see `ciar.certificate`, or with a
        risk_file by late verification of the pictures before, see `ciar_edge.risk_file`.
    sampling: those of `SamplingParams` that the user set, the seed aside.
    """

    prompt: str
    seed: int
    model: str
    cloud: str | None = None
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    remote: RemoteConfig = dataclasses.field(default_factory=RemoteConfig)
    access: Access = dataclasses.field(default_factory=Access)
    router: str | None = None
    budget: float | None = None
    threshold: float | None = None
    max_risk: float | None = None
    risk_file: Path | None = None
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InvalidInput("prompt", self.prompt, "say what to draw: it is empty")
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidInput("seed", self.seed, "give an integer from 0 to 2^64-1")
        router = self.router or DEFAULT_ROUTER
        make_router(router, budget=self.budget, threshold=self.threshold)  # checks all three
        if self.max_risk is not None:
            check_risk(self.max_risk)
            if self.threshold is not None:
                remedy = "give a threshold or a risk, not both"
                raise InvalidInput("max_risk", self.max_risk, remedy)
        if self.risk_file is not None:
            self._check_risk_file(str(self.risk_file))
        if self.cloud is not None:
            check_address(self.cloud)
            self.access.check(self.cloud)
        self.merge(SamplingParams())

    def _check_risk_file(self, name: str) -> None:
        if self.max_risk is None:
            raise InvalidInput("risk_file", name, "say which risk it is to keep: max_risk")
        if self.decode.mode != "optimistic" or self.decode.max_gap == math.inf:
            remedy = "leave it out: only optimistic decoding with a max_gap looks at kept tokens"
            raise InvalidInput("risk_file", name, remedy)
        if self.budget is not None:
            raise InvalidInput("budget", self.budget, "leave it out: the risk file has no calls")

    def merge(self, defaults: SamplingParams) -> SamplingParams:
        """The user's sampling parameters over the checkpoint's. Raises `InvalidInput`."""
        return dataclasses.replace(defaults, seed=self.seed, **self.sampling)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn(Drawing):
    """risk_file: where `learn` remembers what the picture lost, once that is saved."""

    risk_file: RiskFile | None = None

    def learn(self) -> None:
        """Raises `InvalidInput`, `CheckpointError`, `OutputError`: see `RiskFile`."""
        if self.risk_file and not math.isnan(loss := lost(self.result)):
            self.risk_file.learn(loss)


async def draw(
    options: DrawOptions, *, embedded: EmbeddedCloud | None, observer: Observer
) -> Drawn:
    """Draw one image; `embedded` serves when no address of a cloud is given."""
    folder = find_model(options.model)
    torch.set_num_threads(1)  # one row through one layer is faster on one
    model = load_draft_model(folder / "edge")
    certificate = _certificate(options, folder, model)
    risk_file = _risk_file(options, folder, model)
    painter = Painter.load(folder / "vq")
    painter.check_codebook(model.draft.config.vocab_size)
    router = _router(options, model, _static_threshold(options, certificate, risk_file))
    if options.decode.mode == "offline":
        result = await _draw_offline(options, folder, model, router, observer)
    else:
        assert options.cloud or embedded, "somebody must serve"
        address = options.cloud or await embedded.address()  # type: ignore[union-attr]
        result = await _draw_with_cloud(options, address, model, router, certificate, observer)
    torch.set_num_threads(num_cores())
    return Drawn(
        prompt=options.prompt,
        seed=options.seed,
        mode=options.decode.mode,
        fingerprint=model.target,
        router=options.router or model.router,
        result=result,
        pixels=painter.paint(result.tokens),
        warnings=warnings_of(result),
        risk_file=risk_file,
    )


def _certificate(options: DrawOptions, folder: Path, model: EdgeModel) -> Certificate | None:
    """Of the threshold, if there is to be one. Raises `InvalidInput`, `CheckpointError`."""
    if options.max_risk is None or options.risk_file is not None:
        return None
    certificate = read_certificate(folder / "edge", max_risk=options.max_risk)
    certificate.check_edge(
        draft=fingerprint(folder / "edge"),
        router=options.router or model.router,
        prefix_rate=options.decode.prefix_rate,
        wavefront=options.decode.wavefront,
        features=options.decode.features,
        epsilon=options.decode.epsilon,
    )
    return certificate


def _risk_file(options: DrawOptions, folder: Path, model: EdgeModel) -> RiskFile | None:
    if options.risk_file is None:
        return None
    router = options.router or model.router
    if router not in model.calibration:
        remedy = "the model has no quantiles of it: give another, or no risk file"
        raise InvalidInput("router", router, remedy)
    assert options.max_risk is not None
    return RiskFile(
        options.risk_file,
        options.max_risk,
        draft=fingerprint(folder / "edge"),
        router=router,
        quantiles=model.calibration[router],
    )


def _static_threshold(
    options: DrawOptions, certificate: Certificate | None, risk_file: RiskFile | None
) -> float | None:
    """On the router's score; None: there is a budget. Raises `InvalidInput` without a threshold
    that keeps to the risk.
    """
    if risk_file:
        return risk_file.tau
    if certificate is None:
        return options.threshold
    assert options.max_risk is not None
    return certificate.threshold(
        options.max_risk,
        budget=options.budget,
        is_one_by_one=options.decode.mode != "optimistic",
    )


def lost(result: ImageResult) -> float:
    """Its loss; where nothing was kept nothing is lost. NaN: nobody knows."""
    return result.loss if result.counts[Origin.KEPT] or result.late else 0.0


async def _draw_with_cloud(
    options: DrawOptions,
    address: str,
    model: EdgeModel,
    router: Router,
    certificate: Certificate | None,
    observer: Observer,
) -> ImageResult:
    access = options.access if options.cloud else Access()  # the embedded cloud asks for nothing
    async with RemoteVerifier(address, config=options.remote, access=access) as verifier:
        info = await verifier.info()
        sampling = options.merge(info.sampling)
        if certificate:
            certificate.check_cloud(target=model.target or info.fingerprint, sampling=sampling)
        return await generate(
            options.prompt,
            model=model,
            router=router,
            verifier=verifier,
            config=options.decode,
            sampling=sampling,
            observer=observer,
        )


async def _draw_offline(
    options: DrawOptions, folder: Path, model: EdgeModel, router: Router, observer: Observer
) -> ImageResult:
    _check_offline_prompt(options.prompt)
    encoder = load_text_encoder(folder)
    result = await generate(
        options.prompt,
        model=model,
        router=router,
        config=options.decode,
        sampling=options.merge(_checkpoint_sampling(folder)),
        encode_text=lambda prompt: encoder.encode([prompt])[0],
        observer=observer,
    )
    unknown_words = tuple(encoder.unknown_words(options.prompt))
    return dataclasses.replace(result, unknown_words=unknown_words)


def load_text_encoder(folder: Path) -> TextFeatures:
    """Of a bundle, for drawing offline. Raises `CheckpointError`."""
    if not (folder / "text").is_dir():
        raise CheckpointError(
            f"{folder}: no text/ folder, which --offline needs to read the prompt; "
            "copy it from the model, or give a cloud with --cloud"
        )
    return load_text(folder / "text")


def _check_offline_prompt(prompt: str) -> None:
    """What the cloud would check. Raises `InvalidInput`."""
    if len(prompt) > MAX_PROMPT_CHARS:
        raise InvalidInput(
            "prompt", f"{len(prompt)} characters", f"give at most {MAX_PROMPT_CHARS}"
        )
    if any("\ud800" <= char <= "\udfff" for char in prompt):
        raise InvalidInput("prompt", prompt, "give Unicode text without lone surrogates")
    if next(words(prompt), None) is None:
        raise InvalidInput("prompt", prompt, "say what to draw: there is no word in it")


def _checkpoint_sampling(folder: Path) -> SamplingParams:
    """The checkpoint's own parameters, from the cloud's half of the model if it is there."""
    if not (folder / "cloud").is_dir():
        return SamplingParams()
    return read_sampling(folder / "cloud")


def _router(options: DrawOptions, model: EdgeModel, threshold: float | None) -> Router:
    config = model.draft.config
    return make_router(
        options.router or model.router,
        budget=options.budget if threshold is None else None,
        threshold=threshold,
        calibration=model.calibration,
        seed=options.seed,
        grid_size=config.grid_size,
        prefix_rate=options.decode.num_prefix(config.num_tokens) / config.num_tokens,
    )
