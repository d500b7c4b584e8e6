"""Slow links between edge and cloud on one machine: by network namespaces where that is allowed,
else by a proxy.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal, Protocol

from ciar.errors import InvalidInput
from ciar_bench.network_namespace import NotAllowed, network_namespace
from ciar_bench.slow_link import SlowLink
from ciar_bench.slow_proxy import slow_proxy

EmulationName = Literal["auto", "netns", "proxy"]


class Emulation(Protocol):
    """inside: in front of the cloud's command.  options: of the cloud."""

    inside: tuple[str, ...]
    options: tuple[str, ...]

    def carrier(self, link: SlowLink) -> str:
        """What carries it, in words."""
        ...

    def slow(self, address: str, link: SlowLink) -> AbstractContextManager[str]:
        """Where to reach the cloud at `address` over the link."""
        ...


class Proxies:
    """cores: for proxies.  is_always: also where nothing is to be slow, to see what one adds."""

    inside: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __init__(self, cores: Sequence[int], *, is_always: bool) -> None:
        self._cores, self._is_always = cores, is_always

    def carrier(self, link: SlowLink) -> str:
        return "straight" if link.is_plain and not self._is_always else "a proxy"

    @contextmanager
    def slow(self, address: str, link: SlowLink) -> Iterator[str]:
        if link.is_plain and not self._is_always:
            yield address
        else:
            with slow_proxy(address, link, cores=self._cores) as proxied:
                yield proxied


@contextmanager
def emulation(
    name: EmulationName,
    links: Sequence[SlowLink],
    *,
    cores: Sequence[int] = (),
    say: Callable[[str], None],
) -> Iterator[Emulation]:
    """What `links` are made with.  cores: for proxies.  Raises `InvalidInput`."""
    with ExitStack() as stack:
        found: Emulation = Proxies(cores, is_always=name == "proxy")
        if name == "netns" or (name == "auto" and not all(link.is_plain for link in links)):
            try:
                found = stack.enter_context(network_namespace())
            except NotAllowed as error:
                if name == "netns":
                    raise InvalidInput("emulation", name, f"give proxy: {error}") from None
                say(f"no network namespaces, so a proxy: {error}")
        yield found
