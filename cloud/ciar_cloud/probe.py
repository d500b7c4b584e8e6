"""`ciar-cloud health`: what a cloud says of itself, for compose files and shells."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ciar.errors import CloudUnavailable
from ciar.wire import SERVICE_NAME


def check_health(address: str, *, is_liveness: bool, seconds: float) -> None:
    """Raises `CloudUnavailable` unless the cloud is ready, or alive. address: without TLS."""
    service = "" if is_liveness else SERVICE_NAME
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = stub.Check(request, timeout=seconds)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            raise CloudUnavailable(f"no cloud at {address} ({error.code().name})") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise CloudUnavailable(f"the cloud at {address} says {name}")
