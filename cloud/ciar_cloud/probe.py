"""`ciar-cloud health`: what a cloud says of itself, for containers and shells.

Imports what it needs to ask, and no torch: a process starts for every question.
"""

from typing import Annotated

import typer

from ciar.errors import CloudUnavailable

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback()
def commands() -> None:
    """With this, typer takes the name of a single command, too."""


@app.command(name="health")
def health_command(
    address: Annotated[str, typer.Argument(help="HOST:PORT, without TLS.")] = "127.0.0.1:50051",
    live: Annotated[
        bool, typer.Option("--live", help="Whether it is alive, not whether it is ready.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for its answer.")] = 2.0,
) -> None:
    """Ask a cloud how it is; exit code 3 unless it is ready."""
    check_health(address, is_liveness=live, seconds=timeout)
    print("alive" if live else "ready")


def check_health(address: str, *, is_liveness: bool, seconds: float) -> None:
    """Raises `CloudUnavailable` unless the cloud is ready, or alive. address: without TLS."""
    import grpc  # other commands list this one, and do without
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from ciar.v1.collaboration_pb2 import DESCRIPTOR

    name = DESCRIPTOR.services_by_name["Collaboration"].full_name  # as in `ciar.wire`
    service = "" if is_liveness else name
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = stub.Check(request, timeout=seconds)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            raise CloudUnavailable(f"no cloud at {address} ({error.code().name})") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise CloudUnavailable(f"the cloud at {address} says {status}")
