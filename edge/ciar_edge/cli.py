"""`ciar-edge generate`: one prompt to one picture.

A flag goes before its environment variable, and that before the default. Pictures are named on
stdout, everything else is said on stderr; the exit codes are those of `ciar.errors`. What needs
torch is imported late, so that help and usage errors come at once and an embedded cloud can load
at the same time as the edge.
"""

import json
import math
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ciar import __version__
from ciar.errors import CiarError, InvalidInput, shorten
from ciar.logs import set_up_logs
from ciar.prefix import DEFAULT_PREFIX_RATE
from ciar.tolerance import DEFAULT_MAX_GAP
from ciar.tracing import set_up_tracing
from ciar_edge.config import DecodeConfig, Mode
from ciar_edge.embedded import EmbeddedCloud
from ciar_edge.ending import Ending

if TYPE_CHECKING:
    from ciar_edge.connection import Access
    from ciar_edge.draw import DrawOptions
    from ciar_edge.image import Drawing
    from ciar_edge.metrics import EdgeMetrics

EXIT_INTERRUPTED = 130
MAX_NAME_CHARS = 60
THRESHOLDS = ("budget", "threshold", "max_risk")
TOLERANCES = ("epsilon", "max_gap")
CONSTANT_ROUTERS = ("always", "never")
ACCESS = ("tls_ca", "tls_cert", "tls_key", "api_key_file")
# Parameters that may be None.
OPTIONAL = frozenset(("router", "cloud", "risk_file", *THRESHOLDS, *TOLERANCES, *ACCESS))
KEY_VARIABLE = "CIAR_API_KEY"

app = typer.Typer(
    help="Draw pictures on this machine, with a cloud for what is uncertain.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    app()


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"ciar-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def _option(*names: str, env: str | None = None, **settings: Any) -> Any:
    return typer.Option(*names, envvar=f"CIAR_{env}" if env else None, **settings)


def _number(text: str | float) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{shorten(text)}: give a number") from None


def _count(text: str | int) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{shorten(text)}: give a whole number") from None


FLOAT: dict[str, Any] = {"parser": _number, "metavar": "NUMBER"}
INT: dict[str, Any] = {"parser": _count, "metavar": "COUNT"}


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to draw.", show_default=False)],
    output: Annotated[
        Path | None,
        _option("-o", "--output", help="The picture, .png. Default: from the prompt and the seed."),
    ] = None,
    seed: Annotated[
        int | None,
        _option(env="SEED", **INT, help="The same seed draws the same. Default: random."),
    ] = None,
    cloud: Annotated[
        str | None,
        _option(env="CLOUD", metavar="HOST:PORT", help="Default: an embedded cloud."),
    ] = None,
    tls: Annotated[
        bool, _option("--tls", env="TLS", help="Encrypt; the system knows the cloud's authority.")
    ] = False,
    tls_ca: Annotated[
        Path | None, _option(env="TLS_CA", help="Encrypt; PEM authority of the cloud.")
    ] = None,
    tls_cert: Annotated[
        Path | None, _option(env="TLS_CERT", help="PEM certificate of this edge (mutual TLS).")
    ] = None,
    tls_key: Annotated[
        Path | None, _option(env="TLS_KEY", help="PEM private key of that certificate.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        _option(
            env="API_KEY_FILE",
            help=f"File with the cloud's API key; or the key itself in {KEY_VARIABLE}.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        _option("--insecure", env="INSECURE", help="Send the API key without encryption."),
    ] = False,
    model: Annotated[
        str, _option(env="MODEL", help="A model folder, or the name of an embedded model.")
    ] = "ciar-mini",
    budget: Annotated[
        float | None,
        _option(env="BUDGET", **FLOAT, help="Cloud calls a token of the image, at most."),
    ] = None,
    threshold: Annotated[
        float | None,
        _option(
            env="THRESHOLD",
            **FLOAT,
            help="Ask above this score. Default: what 30 % of the calibration's tokens exceed.",
        ),
    ] = None,
    max_risk: Annotated[
        float | None,
        _option(
            env="MAX_RISK",
            **FLOAT,
            help="Expected share of kept tokens unlike the cloud's: at most this, by the model's "
            "certificate.",
        ),
    ] = None,
    risk_file: Annotated[
        Path | None,
        _option(
            env="RISK_FILE",
            help="With --optimistic: keep to --max-risk from picture to picture by what the cloud "
            "says of kept tokens, and no certificate. Remembered here, .json.",
        ),
    ] = None,
    router: Annotated[
        str | None,
        _option(
            env="ROUTER",
            help="The score: interval, interval-draw, interval-u, interval-u-scaled, entropy, "
            "softmax-corr, softmax-corr-window, discrete-100, discrete-300, nucleus-100, "
            "nucleus-300, random, spaced, always or never. Default: the model's.",
        ),
    ] = None,
    exact: Annotated[
        bool, _option("--exact", help="Verify every token: the cloud's own picture.")
    ] = False,
    offline: Annotated[bool, _option("--offline", help="Use no cloud at all.")] = False,
    optimistic: Annotated[
        bool,
        _option(
            "--optimistic/--blocking",
            env="OPTIMISTIC",
            help="Draft on while the cloud verifies, and go back where it differs.",
        ),
    ] = False,
    max_gap: Annotated[
        float | None,
        _option(
            env="MAX_GAP",
            **FLOAT,
            help="With --optimistic: take back kept tokens that fall short of the cloud's by more "
            "nats than this. 0: all are the cloud's; inf: they stand. "
            f"Default: {DEFAULT_MAX_GAP:g}.",
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        _option(
            env="EPSILON",
            **FLOAT,
            help="Let uncertain tokens stand that fall short of the cloud's by at most so many "
            "nats. Default: 0.",
        ),
    ] = None,
    wavefront: Annotated[
        int,
        _option(
            env="WAVEFRONT",
            **INT,
            help="Draw rows side by side, each so many tokens behind the one above. 0: row by row.",
        ),
    ] = 0,
    prefix_rate: Annotated[
        float,
        _option(env="PREFIX_RATE", **FLOAT, help="Share of tokens that the cloud draws first."),
    ] = DEFAULT_PREFIX_RATE,
    deadline: Annotated[
        float,
        _option(env="DEADLINE", **FLOAT, help="Seconds to wait for an answer, then decide alone."),
    ] = 10.0,
    features: Annotated[
        str,
        _option(
            env="FEATURES",
            metavar="send|none|recompute",
            help="What kept tokens enter the cloud with: interval features that the edge sends, "
            "none, or those that the cloud recomputes from the tokens.",
        ),
    ] = "send",
    feature_dtype: Annotated[
        str, _option(env="FEATURE_DTYPE", help="How features travel: int8, fp16 or fp32.")
    ] = "int8",
    temperature: Annotated[
        float | None, _option(env="TEMPERATURE", **FLOAT, help="Default: the model's.")
    ] = None,
    top_k: Annotated[
        int | None, _option(env="TOP_K", **INT, help="0: off. Default: the model's.")
    ] = None,
    top_p: Annotated[
        float | None, _option(env="TOP_P", **FLOAT, help="1: off. Default: the model's.")
    ] = None,
    cfg_scale: Annotated[
        float | None,
        _option(env="CFG_SCALE", **FLOAT, help="1: no guidance. Default: the model's."),
    ] = None,
    cfg_interval: Annotated[
        int | None,
        _option(
            env="CFG_INTERVAL",
            **INT,
            help="Guide tokens 0 to this + 1. -1: all. Default: the model's.",
        ),
    ] = None,
    metrics_file: Annotated[
        Path | None,
        _option(env="METRICS_FILE", help="Write Prometheus metrics of the image, .prom."),
    ] = None,
    log_level: Annotated[
        str, _option(env="LOG_LEVEL", help="What is logged: debug, info, warning or error.")
    ] = "warning",
    log_format: Annotated[
        str, _option(env="LOG_FORMAT", help="How: text, or json, an object a line.")
    ] = "text",
    traces: Annotated[
        str | None,
        _option(env="TRACES", help="OpenTelemetry collector, such as http://127.0.0.1:4317."),
    ] = None,
    map_file: Annotated[
        Path | None, _option("--map", help="Write the token map too, .png.")
    ] = None,
    is_json: Annotated[bool, _option("--json", help="Print one JSON object on stdout.")] = False,
    is_quiet: Annotated[bool, _option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Draw a picture of PROMPT."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    sources = {name: context.get_parameter_source(name) for name in context.params}
    flags = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    with _exit_codes(console) as ending:
        _generate(settle(context.params, flags), console, ending)


def settle(params: Mapping[str, Any], flags: Set[str]) -> dict[str, Any]:
    """Refuse flags that contradict each other, and drop what comes from elsewhere and does.

    params: all parameters of `generate`.  flags: names of those given on the command line.
    Raises `InvalidInput`.
    """
    params = dict(params)
    if params["exact"] and params["offline"]:
        raise InvalidInput("offline", True, "give --exact or --offline, not both")
    is_given = "optimistic" in flags and params["optimistic"]
    if is_given and (params["exact"] or params["offline"]):
        raise InvalidInput("optimistic", True, "leave it out with --exact and --offline")
    for other in ("budget", "max_risk"):
        if {other, "threshold"} <= flags:
            remedy = f"give --{other.replace('_', '-')} or --threshold, not both"
            raise InvalidInput("threshold", params["threshold"], remedy)
    idle: list[tuple[str, str]] = []  # a parameter, and why it has nothing to say
    if params["features"] != "send":
        idle += [("feature_dtype", "only --features send sends any")]
    if params["exact"]:
        idle += [(name, "--exact verifies every token") for name in ("router", *THRESHOLDS)]
        idle += [("epsilon", "--exact tolerates nothing")]
        idle += [("features", "--exact keeps no token")]
    if params["offline"]:
        alone = ("cloud", "deadline", "prefix_rate", "tls", "features", "epsilon")
        idle += [(name, "--offline asks for nothing") for name in (*alone, *ACCESS, *THRESHOLDS)]
    if params["exact"] or params["offline"] or not params["optimistic"]:
        idle += [("max_gap", "only --optimistic goes back to kept tokens")]
        idle += [("risk_file", "only --optimistic looks at kept tokens")]
    if params["router"] in CONSTANT_ROUTERS:
        idle += [(name, "this router has no threshold") for name in THRESHOLDS]
    if "threshold" in flags:
        idle += [("budget", ""), ("max_risk", "")]
    elif {"budget", "max_risk"} & flags:
        idle.append(("threshold", ""))
    for name, reason in idle:
        if name in flags:
            raise InvalidInput(name.replace("_", "-"), params[name], f"leave it out: {reason}")
        if name in OPTIONAL:
            params[name] = None
    if "risk_file" not in flags and (params["max_risk"] is None or "budget" in flags):
        params["risk_file"] = None
    if params["risk_file"] is not None and "budget" not in flags:
        params["budget"] = None
    return params


def _generate(params: Mapping[str, Any], console: Console, ending: Ending) -> None:
    """Draw, write, report. Everything the parameters can be wrong in is looked at first.

    Side files come last: one that fails takes no picture along.
    """
    seed = secrets.randbits(32) if params["seed"] is None else params["seed"]
    output = params["output"] or Path(default_name(params["prompt"], seed))
    set_up_logs(level=params["log_level"], kind=params["log_format"])
    if params["traces"]:
        set_up_tracing(params["traces"], service="ciar-edge")
    with ExitStack() as side_files:
        with ExitStack() as stack:
            embedded = None
            if not (params["offline"] or params["cloud"]):
                recomputes = params["features"] == "recompute"
                embedded = stack.enter_context(
                    EmbeddedCloud(params["model"], recomputes_features=recomputes)
                )
            # With torch behind them: the embedded cloud loads it at the same time.
            from ciar_edge.draw import draw
            from ciar_edge.progress import make_display
            from ciar_edge.result import Observer, Observers

            options = _draw_options(params, seed=seed)
            _check_paths(output, params["map_file"])
            display = make_display(console, is_quiet=params["is_quiet"])
            observer: Observer = stack.enter_context(display)
            if params["metrics_file"]:
                metrics = side_files.enter_context(_metrics(params["metrics_file"]))
                observer = Observers(observer, metrics)
            drawing = ending.run(draw(options, embedded=embedded, observer=observer))
        drawing.save(output)
        if params["map_file"]:
            drawing.save_map(params["map_file"])
        _tell(drawing, options, output, params, console)
        drawing.learn()


@contextmanager
def _metrics(path: Path) -> "Iterator[EdgeMetrics]":
    """Written whatever becomes of the image."""
    from ciar_edge.metrics import EdgeMetrics

    metrics = EdgeMetrics()
    metrics.write(path)  # before the image is drawn: whether it can be
    try:
        yield metrics
    except CiarError as error:
        metrics.image_failed(error)
        raise
    finally:
        metrics.write(path)


def _draw_options(params: Mapping[str, Any], *, seed: int) -> "DrawOptions":
    from ciar_edge.connection import RemoteConfig
    from ciar_edge.draw import DrawOptions

    modes: tuple[Mode, ...] = ("exact", "offline", "optimistic")
    mode: Mode = next((name for name in modes if params[name]), "blocking")
    same_name = ("prompt", "model", "cloud", "router", "risk_file", *THRESHOLDS)
    sampling = ("temperature", "top_k", "top_p", "cfg_scale", "cfg_interval")
    tolerances: dict[str, Any] = {"max_gap": DEFAULT_MAX_GAP} if mode == "optimistic" else {}
    tolerances |= {name: params[name] for name in TOLERANCES if params[name] is not None}
    return DrawOptions(
        **{name: params[name] for name in same_name},
        seed=seed,
        decode=DecodeConfig(
            mode=mode,
            prefix_rate=params["prefix_rate"],
            features=params["features"],
            wavefront=params["wavefront"],
            **tolerances,
        ),
        remote=RemoteConfig(
            feature_dtype=params["feature_dtype"], deadline_seconds=params["deadline"]
        ),
        access=_access(params),
        sampling={name: params[name] for name in sampling if params[name] is not None},
    )


def _access(params: Mapping[str, Any]) -> "Access":
    from ciar_edge.connection import Access, read_api_key

    key = os.environ.get(KEY_VARIABLE, "")
    if params["api_key_file"]:
        key = read_api_key(params["api_key_file"])
    pem = {name: params[name] for name in ("tls_ca", "tls_cert", "tls_key")}
    is_encrypted = params["tls"] or any(pem.values())
    return Access(api_key=key, is_encrypted=is_encrypted, may_leak=params["insecure"], **pem)


def _check_paths(output: Path, map_file: Path | None) -> None:
    from ciar.picture import check_picture_path

    check_picture_path(output)
    if map_file is not None:
        check_picture_path(map_file, field="map")
        if map_file.resolve() == output.resolve():
            raise InvalidInput("map", str(map_file), "give another file than for the picture")


def _tell(
    drawing: "Drawing",
    options: "DrawOptions",
    output: Path,
    params: Mapping[str, Any],
    console: Console,
) -> None:
    from ciar_edge.progress import summary

    for line in drawing.warnings:
        console.print(f"ciar-edge: warning: {line}")
    if not params["is_quiet"]:
        console.print(f"seed {drawing.seed}, {summary(drawing.result)}")
    if params["is_json"]:
        extra = {
            "wavefront": options.decode.wavefront,
            "router": drawing.router,
            "budget": options.budget,
            "threshold": options.threshold,
            "max_risk": options.max_risk,
            "risk_file": str(options.risk_file) if options.risk_file else None,
            "loss": None if math.isnan(loss := drawing.result.loss) else loss,
            "map": str(params["map_file"]) if params["map_file"] else None,
        }
        print(json.dumps(drawing.report(output=output, extra=extra)))
    elif not params["is_quiet"]:
        print(output)


def default_name(prompt: str, seed: int) -> str:
    """`a-dog-on-a-beach-0.png`"""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall("[a-z0-9]+", plain))[:MAX_NAME_CHARS].strip("-")
    return f"{words or 'picture'}-{seed}.png"


@contextmanager
def _exit_codes(console: Console) -> Iterator[Ending]:
    """Errors in words, and every end a tidy one."""
    with Ending() as ending:
        try:
            yield ending
        except CiarError as error:
            console.print(f"ciar-edge: error: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.print("ciar-edge: cancelled")
            raise typer.Exit(EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    main()
