"""Who may use a cloud: API keys and what they allow, TLS, and what an edge shows of itself."""

import asyncio
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import trustme
from grpc import StatusCode, aio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from typer.testing import CliRunner

from ciar import wire
from ciar.errors import AccessDenied, CloudUnavailable, InvalidInput, Overloaded
from ciar.local import LocalVerifier
from ciar.target import Target
from ciar.types import ImageRequest
from ciar.v1 import collaboration_pb2 as pb
from ciar_bench.cloud_process import free_port
from ciar_cloud.bundle import CloudModel
from ciar_cloud.cli import app as cloud_app
from ciar_cloud.config import ServeConfig
from ciar_cloud.keys import ANYONE, Caller, KeyRing, Limits, add_key
from ciar_cloud.quotas import Quotas
from ciar_edge.connection import Access, RemoteConfig, read_api_key
from ciar_edge.remote import RemoteVerifier
from tests.cloud_client import SERVING, Client, cloud, request, uncertain

QUICK = RemoteConfig(connect_seconds=3.0, deadline_seconds=20.0)
AUTHORITY = trustme.CA()


# --------------------------------------------------------------------------------- the keys' file


def test_a_key_is_found_by_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    alice = add_key(path, "alice", Limits())
    bob = add_key(path, "bob", Limits(max_sessions=2, images_per_minute=30, queue_share=0.5))
    ring = KeyRing(path)
    assert ring.find(alice) == Caller(name="alice")
    limits = Limits(max_sessions=2, images_per_minute=30, queue_share=0.5)
    assert ring.find(bob) == Caller(name="bob", limits=limits)
    for wrong in ("", alice[:-1], alice + "x", "x" * 10_000, hashlib.sha256(b"").hexdigest()):
        assert ring.find(wrong) is None
    assert alice not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_keys_made_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    names = [f"edge-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda name: add_key(path, name, Limits()), names))
    ring = KeyRing(path)
    assert [ring.find(key) for key in keys] == [Caller(name=name) for name in names]
    assert os.listdir(tmp_path) == ["keys.toml"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o440])
def test_who_could_read_the_file_still_can(tmp_path: Path, mode: int) -> None:
    """A service of another user, or by a link."""
    path, link = tmp_path / "keys.toml", tmp_path / "link.toml"
    first = add_key(path, "first", Limits())
    link.symlink_to(path)
    path.chmod(mode)
    owner = (os.getuid(), os.getgid())
    if owner[0] == 0:
        owner = (12345, 23456)
        os.chown(path, *owner)
    second = add_key(link, "second", Limits())
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (*owner, mode)
    assert link.is_symlink()
    ring = KeyRing(path)
    assert ring.find(first) and ring.find(second)


def test_the_file_is_read_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    first = add_key(path, "first", Limits())
    ring = KeyRing(path)
    second = add_key(path, "second", Limits())
    assert ring.find(second) == Caller(name="second")
    path.write_text("[keys.broken]\n")
    for _ in range(3):
        assert ring.find(first) == Caller(name="first"), "a file that is wrong changes nothing"
    assert caplog.text.count("sha256") == 1, "and is reported once"
    path.unlink()
    assert ring.find(first) == Caller(name="first")
    path.write_text("")
    assert ring.find(first) is None


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("[keys.a]\n", "sha256: None: give 64"),
        (f'[keys.a]\nsha256 = "{DIGEST.replace("0", "A")}"\n', "lower case"),
        (f'[keys."a b"]\nsha256 = "{DIGEST}"\n', "letters, digits"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nmax_session = 1\n', "max_session: 1: give max_sessions"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nmax_sessions = -1\n', "max_sessions: -1: give a count"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nimages_per_minute = true\n', "images_per_minute: True"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nqueue_share = 0\n', "queue_share: 0: give a share"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\n[keys.b]\nsha256 = "{DIGEST}"\n', "a has it"),
        ("keys = 3\n", "give tables"),
        ("[other]\n", "nothing else"),
        ("[keys.a\n", "no TOML file"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, pattern: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=pattern) as error:
        KeyRing(path)
    assert error.value.field == "keys"


def test_the_command_prints_a_key_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    arguments = ["key", "alice", "--keys", str(path), "--images-per-minute", "5"]
    done = CliRunner().invoke(cloud_app, arguments)
    assert done.exit_code == 0
    caller = KeyRing(path).find(done.stdout.strip())
    assert caller == Caller(name="alice", limits=Limits(images_per_minute=5))
    again = CliRunner().invoke(cloud_app, arguments)
    assert isinstance(again.exception, InvalidInput)
    assert "alice" in str(again.exception)


def test_limits_of_a_caller() -> None:
    now = 0.0
    quotas = Quotas(clock=lambda: now)
    caller = Caller(name="a", limits=Limits(max_sessions=2, images_per_minute=3))
    other = Caller(name="b", limits=Limits(max_sessions=1))
    quotas.begin(caller)
    quotas.begin(caller)
    with pytest.raises(Overloaded, match="2 sessions"):
        quotas.begin(caller)
    quotas.begin(other)
    quotas.end(caller)
    quotas.begin(caller)
    quotas.end(caller)
    with pytest.raises(Overloaded, match="3 images within a minute") as error:
        quotas.check(caller)
    assert error.value.retry_seconds == pytest.approx(20.0)
    now = 19.0
    with pytest.raises(Overloaded):
        quotas.begin(caller)
    now = 20.1
    quotas.begin(caller)
    for _ in range(100):
        quotas.begin(ANYONE)


# ------------------------------------------------------------------------------- a cloud with keys


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def address_of(client: Client) -> str:
    return f"127.0.0.1:{client.port}"


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def statuses(client: Client, metadata: Any) -> dict[str, StatusCode | None]:
    """How every method answers; None: it does."""
    found: dict[str, StatusCode | None] = {}
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)  # type: ignore[arg-type]
    unary: dict[str, tuple[Any, Any]] = {
        "GetModel": (client.stub.GetModel, pb.GetModelRequest(protocol_version=1)),
        "PrefixInject": (client.stub.PrefixInject, pb.PrefixInjectRequest()),
    }
    streams: dict[str, tuple[Any, Any]] = {
        "VerifyBatch": (client.stub.VerifyBatch, pb.VerifyBatchRequest(attach=pb.Attach())),
        "Reflection": (
            reflection.ServerReflectionInfo,
            reflection_pb2.ServerReflectionRequest(list_services=""),
        ),
    }
    calls = {name: method(message, metadata=metadata) for name, (method, message) in unary.items()}
    for name, (method, message) in streams.items():
        calls[name] = method(iter([message]), metadata=metadata).read()
    for name, call in calls.items():
        try:
            await asyncio.wait_for(call, 5)
            found[name] = None
        except aio.AioRpcError as error:
            found[name] = error.code()
    assert await client.health() == await client.health("") == SERVING
    return found


def test_probes_need_neither_key_nor_certificate(
    run: Any, model: CloudModel, keys: Path, tmp_path: Path
) -> None:
    """On a port of its own, which knows nothing else."""
    pem, port = write_pem(tmp_path, AUTHORITY), free_port()
    add_key(keys, "alice", Limits())
    settings = {"tls_cert": pem["cert"], "tls_key": pem["key"], "keys": keys, "health_port": port}
    address = f"127.0.0.1:{port}"

    def probe(*arguments: str) -> Any:
        return CliRunner().invoke(cloud_app, ["health", address, *arguments])

    async def ask() -> None:
        async with cloud(model, **settings) as client:
            for arguments, word in (((), "ready"), (("--live",), "alive")):
                done = await asyncio.to_thread(probe, *arguments)
                assert (done.exit_code, done.stdout) == (0, f"{word}\n")
            async with aio.insecure_channel(address) as channel:
                found = await statuses(Client(client.server, port, channel), ())
            assert set(found.values()) == {StatusCode.UNIMPLEMENTED}, found
            await client.server.drain()
            done = await asyncio.to_thread(probe)
            assert isinstance(done.exception, CloudUnavailable)
            assert "NOT_SERVING" in str(done.exception)
            assert (await asyncio.to_thread(probe, "--live")).exit_code == 0
        assert "no cloud" in str((await asyncio.to_thread(probe)).exception)

    run(ask())


def test_without_the_key_nothing_but_health_answers(
    run: Any, model: CloudModel, keys: Path
) -> None:
    key = add_key(keys, "alice", Limits())

    async def ask() -> None:
        async with cloud(model, keys=keys) as client:
            refused = [(), bearer("wrong"), bearer(""), (("authorization", key),)]
            for metadata in refused:
                found = await statuses(client, metadata)
                assert set(found.values()) == {StatusCode.UNAUTHENTICATED}, (metadata, found)
            assert len(client.server.sessions) == 0
            nothing: Any = b""
            for name in ("/ciar.v1.Collaboration/Invented", "/Invented/GetModel"):
                with pytest.raises(aio.AioRpcError) as error:
                    await client.channel.unary_unary(name)(nothing, timeout=20)
                assert error.value.code() is StatusCode.UNAUTHENTICATED
            methods = {
                sample.labels["method"]
                for metric in client.server.metrics.registry.collect()
                for sample in metric.samples
                if "method" in sample.labels
            }
            assert methods == {"GetModel", "PrefixInject", "VerifyBatch", "other"}
            found = await statuses(client, bearer(key))
            assert found == {
                "GetModel": None,
                "PrefixInject": StatusCode.INVALID_ARGUMENT,
                "VerifyBatch": StatusCode.ABORTED,
                "Reflection": None,
            }

    run(ask())


@pytest.mark.parametrize("path", ["/", "/metrics", "/ciar.v1.Collaboration/GetModel"])
def test_the_metrics_port_tells_no_more_than_metrics(
    run: Any, model: CloudModel, keys: Path, path: str
) -> None:
    """It asks for no key, so it listens on loopback, and takes nothing in."""
    add_key(keys, "alice", Limits())
    port = free_port()

    def ask(data: bytes | None) -> bytes:
        with urlopen(f"http://127.0.0.1:{port}{path}", data=data, timeout=20) as page:
            return bytes(page.read())

    async def scrape() -> None:
        async with cloud(model, keys=keys, metrics_port=port):
            page = await asyncio.to_thread(ask, None)
            lines = [line for line in page.splitlines() if not line.startswith(b"#")]
            assert lines and all(line.startswith(b"ciar_cloud_") for line in lines)
            with pytest.raises(HTTPError, match="405|501"):
                await asyncio.to_thread(ask, b"data")

    run(scrape())


def image(seed: int = 5) -> ImageRequest:
    return request(seed, num_prefix=2)


async def tokens_of(verifier: Any) -> list[int]:
    """An image with everything verified, token by token."""
    async with verifier.open(image()) as session:
        known = list(session.prefix.tokens)
        while len(known) < 16:
            verdict = await session.verify(uncertain(len(known), [0], epoch=len(known)))
            known += [0] * verdict.num_agreed
            if verdict.token is not None:
                known.append(verdict.token)
        return known


def test_an_edge_with_a_key_draws(run: Any, model: CloudModel, keys: Path) -> None:
    key = add_key(keys, "alice", Limits())
    local = LocalVerifier(
        Target(model.target, num_slots=1),
        lambda prompt: model.encoder.encode([prompt])[0],
        model.info,
    )

    async def draw() -> None:
        async with cloud(model, keys=keys) as client:
            access = Access(api_key=key)
            async with RemoteVerifier(address_of(client), config=QUICK, access=access) as verifier:
                assert await tokens_of(verifier) == await tokens_of(local)
            async with RemoteVerifier(address_of(client), config=QUICK) as verifier:
                with pytest.raises(AccessDenied, match="--api-key-file"):
                    await verifier.info()

    run(draw())


def test_a_session_is_for_the_key_that_opened_it(run: Any, model: CloudModel, keys: Path) -> None:
    """Another key learns nothing, and the owner loses nothing."""
    alice, bob = (add_key(keys, name, Limits()) for name in ("alice", "bob"))

    async def steal() -> None:
        async with cloud(model, keys=keys) as client:
            stub: Any = client.stub
            message = wire.prefix_request_to_proto(image())
            answer = await stub.PrefixInject(message, metadata=bearer(alice), timeout=20)
            texts = []
            for session_id in (answer.session_id, "no such session"):
                first = pb.VerifyBatchRequest(attach=pb.Attach(session_id=session_id))
                call = stub.VerifyBatch(iter([first]), metadata=bearer(bob), timeout=20)
                with pytest.raises(aio.AioRpcError) as error:
                    await call.read()
                assert error.value.code() is StatusCode.ABORTED
                texts.append(error.value.details())
            assert texts[0] == texts[1]
            first = pb.VerifyBatchRequest(attach=pb.Attach(session_id=answer.session_id))
            call = stub.VerifyBatch(metadata=bearer(alice), timeout=20)
            await call.write(first)
            reply = await call.read()
            assert reply.attached.num_known == 2
            call.cancel()

    run(steal())


def test_a_key_has_as_many_sessions_and_images_as_it_may(
    run: Any, model: CloudModel, keys: Path
) -> None:
    few = add_key(keys, "few", Limits(max_sessions=1))
    slow = add_key(keys, "slow", Limits(images_per_minute=1))

    async def draw() -> None:
        hasty = RemoteConfig(prefix_seconds=0.5)
        async with cloud(model, keys=keys) as client:
            address = address_of(client)
            access = [Access(api_key=key) for key in (few, slow)]
            async with (
                RemoteVerifier(address, config=hasty, access=access[0]) as first,
                RemoteVerifier(address, config=hasty, access=access[1]) as second,
            ):
                async with first.open(image()):
                    with pytest.raises(Overloaded, match="1 sessions open"):
                        async with first.open(image()):
                            pass
                async with first.open(image()):
                    pass
                async with second.open(image()):
                    pass
                with pytest.raises(Overloaded, match="within a minute") as error:
                    async with second.open(image()):
                        pass
                assert 50 < error.value.retry_seconds <= 60

    run(draw())


# -------------------------------------------------------------------------------------------- TLS


def write_pem(folder: Path, authority: trustme.CA, name: str = "server") -> dict[str, Path]:
    """Certificate and key for loopback."""
    pair = authority.issue_cert("127.0.0.1", "localhost")
    paths = {"cert": folder / f"{name}.pem", "key": folder / f"{name}.key"}
    paths["cert"].write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    paths["key"].write_bytes(pair.private_key_pem.bytes())
    return paths


def write_authority(folder: Path, authority: trustme.CA, name: str = "ca.pem") -> Path:
    path = folder / name
    path.write_bytes(authority.cert_pem.bytes())
    return path


async def greet(address: str, access: Access) -> str:
    async with RemoteVerifier(address, config=QUICK, access=access) as verifier:
        return (await verifier.info()).name


def test_tls(run: Any, model: CloudModel, tmp_path: Path) -> None:
    server_pem = write_pem(tmp_path, AUTHORITY)
    ca = write_authority(tmp_path, AUTHORITY)
    strange = write_authority(tmp_path, trustme.CA(), "strange.pem")
    settings = {"tls_cert": server_pem["cert"], "tls_key": server_pem["key"]}

    async def draw() -> None:
        async with cloud(model, **settings) as client:
            address = address_of(client)
            assert await greet(address, Access(is_encrypted=True, tls_ca=ca)) == model.info.name
            for access in (Access(), Access(is_encrypted=True, tls_ca=strange)):
                with pytest.raises(CloudUnavailable):
                    await greet(address, access)

    run(draw())


def test_mutual_tls(run: Any, model: CloudModel, tmp_path: Path) -> None:
    server_pem, ca = write_pem(tmp_path, AUTHORITY), write_authority(tmp_path, AUTHORITY)
    clients, others = trustme.CA(), trustme.CA()
    client_ca = write_authority(tmp_path, clients, "clients.pem")
    good, bad = (write_pem(tmp_path, c, n) for c, n in ((clients, "good"), (others, "bad")))
    settings = {"tls_cert": server_pem["cert"], "tls_key": server_pem["key"]}

    async def draw() -> None:
        async with cloud(model, **settings, tls_client_ca=client_ca) as client:
            address = address_of(client)

            def access(**pem: Any) -> Access:
                return Access(is_encrypted=True, tls_ca=ca, **pem)

            own = access(tls_cert=good["cert"], tls_key=good["key"])
            assert await greet(address, own) == model.info.name
            for wrong in (access(), access(tls_cert=bad["cert"], tls_key=bad["key"])):
                with pytest.raises(CloudUnavailable):
                    await greet(address, wrong)

    run(draw())


def test_a_new_certificate_is_used_without_a_restart(
    run: Any, model: CloudModel, tmp_path: Path
) -> None:
    paths, old_ca = write_pem(tmp_path, AUTHORITY), write_authority(tmp_path, AUTHORITY)
    new = trustme.CA()
    new_ca = write_authority(tmp_path, new, "new-ca.pem")
    before, after = (Access(is_encrypted=True, tls_ca=path) for path in (old_ca, new_ca))

    async def draw() -> None:
        async with cloud(model, tls_cert=paths["cert"], tls_key=paths["key"]) as client:
            address = address_of(client)
            assert await greet(address, before)
            paths["key"].write_text("half of a rotation")
            assert await greet(address, before), "files that do not fit change nothing"
            write_pem(tmp_path, new)
            assert await greet(address, after)
            with pytest.raises(CloudUnavailable):
                await greet(address, before)

    run(draw())


@pytest.mark.parametrize(
    ("settings", "field", "pattern"),
    [
        ({"tls_cert": "a.pem"}, "tls-cert", "cert and key"),
        ({"tls_key": "a.key"}, "tls-key", "cert and key"),
        ({"tls_client_ca": "ca.pem"}, "tls-client-ca", "--tls-cert"),
        ({"host": "0.0.0.0"}, "host", "--keys"),
        ({"host": "0.0.0.0", "keys": "k"}, "host", "--tls-cert"),
        ({"host": "0.0.0.0", "tls_cert": "a", "tls_key": "b"}, "host", "--keys"),
    ],
)
def test_a_cloud_is_not_opened_by_accident(
    settings: dict[str, str], field: str, pattern: str
) -> None:
    paths = {name: value if name == "host" else Path(value) for name, value in settings.items()}
    with pytest.raises(InvalidInput, match=pattern) as error:
        ServeConfig(**paths)  # type: ignore[arg-type]
    assert error.value.field == field


def test_a_cloud_may_be_opened_on_purpose() -> None:
    pem = {"tls_cert": Path("a"), "tls_key": Path("b")}
    for settings in (
        {"insecure": True},
        pem | {"keys": Path("k")},
        pem | {"tls_client_ca": Path("c")},
    ):
        ServeConfig(host="0.0.0.0", **settings)


def test_files_that_are_no_certificates_are_refused(
    run: Any, model: CloudModel, tmp_path: Path
) -> None:
    paths, other = write_pem(tmp_path, AUTHORITY), write_pem(tmp_path, AUTHORITY, "other")
    (tmp_path / "text").write_text("no certificate")

    async def start(**settings: Path) -> None:
        async with cloud(model, **settings):
            pass

    wrong = [
        {"tls_cert": paths["cert"], "tls_key": other["key"]},
        {"tls_cert": tmp_path / "text", "tls_key": paths["key"]},
        {"tls_cert": tmp_path / "missing", "tls_key": paths["key"]},
        {"tls_cert": paths["cert"], "tls_key": paths["key"], "tls_client_ca": tmp_path / "text"},
    ]
    for settings in wrong:
        with pytest.raises(InvalidInput, match=r"tls"):
            run(start(**settings))


# --------------------------------------------------------------------------------------- the edge


def test_an_edge_does_not_send_its_key_in_the_open(tmp_path: Path) -> None:
    access = Access(api_key="k")
    with pytest.raises(InvalidInput, match="unencrypted"):
        access.check("cloud.example:50051")
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x"):
        access.check(address)
    Access(api_key="k", is_encrypted=True).check("cloud.example:50051")
    Access(api_key="k", may_leak=True).check("cloud.example:50051")
    Access().check("cloud.example:50051")
    assert "k'" not in repr(access)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"tls_cert": Path("a"), "is_encrypted": True}, "tls-cert"),
        ({"tls_key": Path("a"), "is_encrypted": True}, "tls-key"),
        ({"tls_ca": Path("a")}, "tls-ca"),
        ({"api_key": "two\nlines"}, "api-key"),
        ({"api_key": "two words"}, "api-key"),
        ({"api_key": "schlüssel"}, "api-key"),
    ],
)
def test_access_is_checked(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        Access(**settings)
    assert error.value.field == field
    assert settings.get("api_key", "no key") not in str(error.value)


def test_files_of_an_edge(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("ciar_abc\n")
    assert read_api_key(tmp_path / "key") == "ciar_abc"
    with pytest.raises(InvalidInput, match="api-key-file"):
        read_api_key(tmp_path / "missing")
    with pytest.raises(InvalidInput, match="tls-ca"):
        Access(is_encrypted=True, tls_ca=tmp_path / "missing").pem("tls_ca")
