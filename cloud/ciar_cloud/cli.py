"""`ciar-cloud serve`, `generate`, `top`, `health`, `key`, `convert`, `text-features`."""

import asyncio
import gc
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ciar import __version__
from ciar.checkpoint import DEFAULT_MODEL, find_model
from ciar.event_loop import fast_loop
from ciar.logs import set_up_logs
from ciar.picture import check_picture_path
from ciar.tracing import set_up_tracing
from ciar_cloud.bundle import FrontModel, load_cloud_model, load_front_model
from ciar_cloud.config import ServeConfig
from ciar_cloud.convert.cli import convert_command
from ciar_cloud.keys import Limits, add_key
from ciar_cloud.probe import health_command
from ciar_cloud.process import exit_with_parent as end_with_parent
from ciar_cloud.process import set_threads, write_ready_file
from ciar_cloud.solo import draw_picture
from ciar_cloud.text import check_prompt
from ciar_cloud.text_features import read_prompts, write_features

DEFAULTS, NO_LIMITS = ServeConfig(), Limits()
NUM_LINES = 4  # of progress, when there is no terminal

app = typer.Typer(
    add_completion=True, no_args_is_help=True, help="The cloud side of CIAR.", rich_markup_mode=None
)


def option(text: str, *names: str, env: str = "", **more: Any) -> Any:
    """An option; `env` is its name in the environment behind CIAR_CLOUD_."""
    return typer.Option(*names, envvar=f"CIAR_CLOUD_{env}" if env else None, help=text, **more)


Model = Annotated[str, option("Model folder, or the name of an embedded one.", env="MODEL")]
Threads = Annotated[int, option("Threads of the model, 0: automatic.", env="THREADS")]
Device = Annotated[str, option("cpu, cuda, cuda:1, ...", env="DEVICE")]
Devices = Annotated[str, option("As cpu, cuda:1; several with commas between.", env="DEVICE")]
Dtype = Annotated[str, option("float32, bfloat16 or float16.", env="DTYPE")]


def print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"ciar-cloud {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """The cloud side of CIAR."""


@app.command()
def serve(
    model: Model = DEFAULTS.model,
    host: Annotated[str, option("Address to listen on.", env="HOST")] = DEFAULTS.host,
    port: Annotated[int, option("Port, 0: a free one.", env="PORT")] = DEFAULTS.port,
    insecure: Annotated[
        bool,
        option("Listen beyond this machine without TLS or keys.", "--insecure", env="INSECURE"),
    ] = DEFAULTS.insecure,
    tls_cert: Annotated[
        Path | None, option("PEM certificate, its chain behind it.", env="TLS_CERT")
    ] = DEFAULTS.tls_cert,
    tls_key: Annotated[
        Path | None, option("PEM private key of the certificate.", env="TLS_KEY")
    ] = DEFAULTS.tls_key,
    tls_client_ca: Annotated[
        Path | None, option("PEM authority of clients that may connect.", env="TLS_CLIENT_CA")
    ] = DEFAULTS.tls_client_ca,
    keys: Annotated[
        Path | None, option("File of API keys: see `ciar-cloud key`.", env="KEYS")
    ] = DEFAULTS.keys,
    slots: Annotated[int, option("KV slots, 0: by memory.", env="SLOTS")] = DEFAULTS.slots,
    kv_budget: Annotated[
        str, option("KV memory of a device, such as 2GiB.", env="KV_BUDGET")
    ] = DEFAULTS.kv_budget,
    min_idle_seconds: Annotated[
        float, option("Idle time after which a slot can be taken.", env="MIN_IDLE_SECONDS")
    ] = DEFAULTS.min_idle_seconds,
    max_queue: Annotated[
        int, option("Waiting works at which new images are refused.", env="MAX_QUEUE")
    ] = DEFAULTS.max_queue,
    max_sessions: Annotated[
        int, option("Most open sessions.", env="MAX_SESSIONS")
    ] = DEFAULTS.max_sessions,
    max_step_positions: Annotated[
        int, option("Most positions in one step.", env="MAX_STEP_POSITIONS")
    ] = DEFAULTS.max_step_positions,
    max_chunk_rows: Annotated[
        int, option("Most rows that a session catches up with in one step.", env="MAX_CHUNK_ROWS")
    ] = DEFAULTS.max_chunk_rows,
    max_batch_tokens: Annotated[
        int, option("Most tokens in one batch, 0: as in an image.", env="MAX_BATCH_TOKENS")
    ] = DEFAULTS.max_batch_tokens,
    threads: Threads = DEFAULTS.threads,
    device: Devices = DEFAULTS.device,
    single_process: Annotated[
        bool,
        option(
            "The model in the server's process, not in one of its own.",
            "--single-process/--engine-process",
            env="SINGLE_PROCESS",
        ),
    ] = DEFAULTS.single_process,
    dtype: Dtype = DEFAULTS.dtype,
    recompute_features: Annotated[
        bool | None,
        option(
            "Let edges have interval features made here, with the model's edge folder. Default: "
            "if it is there.",
            "--recompute-features/--no-recompute-features",
            env="RECOMPUTE_FEATURES",
        ),
    ] = DEFAULTS.recompute_features,
    cuda_graphs: Annotated[
        bool, option("Replay steps of fixed shapes (GPU).", "--cuda-graphs", env="CUDA_GRAPHS")
    ] = DEFAULTS.cuda_graphs,
    lease_seconds: Annotated[
        float, option("Time for a stream to attach to its session.", env="LEASE_SECONDS")
    ] = DEFAULTS.lease_seconds,
    stuck_seconds: Annotated[
        float, option("Work without a step for so long: not alive. 0: ever.", env="STUCK_SECONDS")
    ] = DEFAULTS.stuck_seconds,
    drain_seconds: Annotated[
        float, option("Time for open images when asked to stop.", env="DRAIN_SECONDS")
    ] = DEFAULTS.drain_seconds,
    slow_step_seconds: Annotated[
        float, option("Log and count steps of so long, 0: none.", env="SLOW_STEP_SECONDS")
    ] = DEFAULTS.slow_step_seconds,
    metrics_host: Annotated[
        str, option("Address of /metrics.", env="METRICS_HOST")
    ] = DEFAULTS.metrics_host,
    metrics_port: Annotated[
        int, option("Port of /metrics, 0: none.", env="METRICS_PORT")
    ] = DEFAULTS.metrics_port,
    health_port: Annotated[
        int, option("Port for health alone, without TLS, 0: none.", env="HEALTH_PORT")
    ] = DEFAULTS.health_port,
    log_level: Annotated[
        str, option("debug, info, warning or error.", env="LOG_LEVEL")
    ] = DEFAULTS.log_level,
    log_format: Annotated[
        str, option("text, or json: an object a line.", env="LOG_FORMAT")
    ] = DEFAULTS.log_format,
    traces: Annotated[
        str, option("OTLP collector, such as http://127.0.0.1:4317.", env="TRACES")
    ] = DEFAULTS.traces,
    ready_file: Annotated[
        Path | None, option("Write HOST:PORT there once serving.", env="READY_FILE")
    ] = DEFAULTS.ready_file,
    exit_with_parent: Annotated[
        bool, option("Stop when stdin closes or the parent ends.", "--exit-with-parent")
    ] = DEFAULTS.exit_with_parent,
) -> None:
    """Serve a model to edges until SIGTERM or SIGINT; a second one stops at once."""
    config = ServeConfig(**locals())
    set_up_logs(level=config.log_level, kind=config.log_format)
    if config.traces:
        set_up_tracing(config.traces, service="ciar-cloud")
    if config.exit_with_parent:
        end_with_parent()
    set_threads(config.threads)
    run_serve(load_model(config), config)


def load_model(config: ServeConfig) -> FrontModel:
    """What the server itself needs of its model: all of it in a single process."""
    options: dict[str, Any] = {
        "dtype": config.dtype,
        "max_batch_tokens": config.max_batch_tokens,
        "recompute_features": config.recompute_features,
    }
    if config.single_process:
        return load_cloud_model(config.model, device=config.device, **options)
    return load_front_model(config.model, **options)


def run_serve(model: FrontModel, config: ServeConfig) -> None:
    from ciar_cloud.server import CloudServer, run_server  # gRPC: only who serves waits for it

    def on_ready(port: int) -> None:
        host = f"[{config.host}]" if ":" in config.host else config.host
        address, info = f"{host}:{port}", model.info
        print(
            f"ciar-cloud ready on {address} (model {info.name}, fingerprint {info.fingerprint})",
            flush=True,
        )
        if config.ready_file:
            write_ready_file(config.ready_file, address)

    async def run() -> None:
        await run_server(CloudServer(model, config), on_ready)

    gc.freeze()  # what is loaded stays: collections, and the end, need not walk through it
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(run())


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[Path, option("PNG file to write.", "-o", "--output", env="OUTPUT")] = Path(
        "out.png"
    ),
    seed: Annotated[int, option("Same seed, same picture.", env="SEED")] = 0,
    cfg_scale: Annotated[
        float | None, option("Guidance, 1: off; default: the model's.", env="CFG_SCALE")
    ] = None,
    cfg_interval: Annotated[
        int | None, option("Guide tokens 0 to this + 1; -1: all; default: the model's.")
    ] = None,
    temperature: Annotated[float | None, option("0: greedy; default: the model's.")] = None,
    top_k: Annotated[int | None, option("0: off; default: the model's.")] = None,
    top_p: Annotated[float | None, option("1: off; default: the model's.")] = None,
    wavefront: Annotated[
        int,
        option("Draw rows side by side, each so many tokens behind the one above; 0: row by row."),
    ] = 0,
    model: Model = DEFAULT_MODEL,
    threads: Threads = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Annotated[bool, option("Print one JSON object.", "--json")] = False,
) -> None:
    """Draw a picture with the target model alone: the base that edges are compared with."""
    check_prompt(prompt)
    check_picture_path(output)
    set_threads(threads)
    sampling = {
        "seed": seed,
        "cfg_scale": cfg_scale,
        "cfg_interval": cfg_interval,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    given = {name: value for name, value in sampling.items() if value is not None}
    loaded = load_cloud_model(model, device=device, dtype=dtype)
    with progress(Console(stderr=True), is_quiet=as_json) as on_token:
        report = draw_picture(
            loaded, prompt, output=output, sampling=given, wavefront=wavefront, on_token=on_token
        )
    if unknown_words := report.pop("unknown_words"):
        words = ", ".join(unknown_words)
        print(f"warning: the model does not know: {words}", file=sys.stderr)
    if as_json:
        print(json.dumps(report))
    else:
        print(f"{output}: {len(report['tokens'])} tokens in {report['seconds']:.2f} s")


@app.command()
def text_features(
    prompts: Annotated[
        Path, typer.Argument(help="Prompts: a line each, or JSON Lines with a field prompt.")
    ],
    output: Annotated[Path, option("The folder to write.", "-o", "--output")],
    model: Model = DEFAULT_MODEL,
) -> None:
    """Compute the text features of known prompts; the folder can take the place of NAME/text."""
    wanted = read_prompts(prompts)
    with progress(Console(stderr=True), is_quiet=False, what="prompts") as on_prompts:
        write_features(find_model(model) / "text", wanted, output, on_prompts=on_prompts)
    print(f"{output}: features of {len(wanted)} prompts")


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose key it is: letters, digits, - and _.")],
    keys: Annotated[Path, option("The file of keys; made if missing.", env="KEYS")],
    max_sessions: Annotated[
        int, option("Most open sessions, 0: no limit.")
    ] = NO_LIMITS.max_sessions,
    images_per_minute: Annotated[
        int, option("Most images a minute, 0: no limit.")
    ] = NO_LIMITS.images_per_minute,
    queue_share: Annotated[
        float, option("Share of the queue that it may take.")
    ] = NO_LIMITS.queue_share,
) -> None:
    """Make an API key: it is printed once, and its hash goes to the file."""
    limits = Limits(
        max_sessions=max_sessions, images_per_minute=images_per_minute, queue_share=queue_share
    )
    print(add_key(keys, name, limits))


@app.command()
def top(
    url: Annotated[str, typer.Argument(help="A cloud's page of metrics.")] = (
        f"http://{DEFAULTS.metrics_host}:{DEFAULTS.metrics_port}/metrics"
    ),
    interval: Annotated[float, option("Seconds between two looks.", min=0.1)] = 2.0,
    count: Annotated[int, option("Looks until it ends, 0: no end.", min=0)] = 0,
) -> None:
    """Watch a cloud at work: rates, times, queue, slots and errors. Ctrl-C ends it."""
    from ciar_cloud.top import show  # reads Prometheus pages, as nobody else here

    with suppress(KeyboardInterrupt):
        show(url, seconds=interval, count=count, console=Console())


app.command(name="health")(health_command)
app.command(name="convert")(convert_command)


@contextmanager
def progress(
    console: Console, *, is_quiet: bool, what: str = "tokens"
) -> Iterator[Callable[[int, int], None]]:
    """Told (done, all) as work goes on: a bar on a terminal, else a few lines."""
    if is_quiet:
        yield lambda done, total: None
    elif console.is_terminal:
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield partial(print_quarters, what)


def print_quarters(what: str, done: int, total: int) -> None:
    if done % math.ceil(total / NUM_LINES) == 0 or done == total:
        print(f"{done}/{total} {what}", file=sys.stderr)
