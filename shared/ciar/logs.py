"""The log of a process: on stderr, lines for people or a JSON object a line, with ids of the call.

Whatever is logged inside `with about(image=..., session=...)` carries these ids, and so do tasks
that start there. `extra={...}` of a record: fields of the object, or `name=value` behind the text.
Prompts, tokens and keys are never logged; a session id would let its reader take the session over,
so a digest stands for it.
"""

import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from ciar.errors import InvalidInput

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
MAX_ID_CHARS = 64

_ids: ContextVar[Mapping[str, str]] = ContextVar("ciar_log_ids", default=MappingProxyType({}))
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Put ids on what is logged inside; empty ones are left out."""
    known = {name: clean(value) for name, value in ids.items() if value}
    token = _ids.set({**_ids.get(), **known})
    try:
        yield
    finally:
        _ids.reset(token)


def clean(value: str) -> str:
    """An id that somebody else chose: short, and printable ASCII alone."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in value[:MAX_ID_CHARS])


def digest(secret: str) -> str:
    """Names a session on both sides without being of use to anybody."""
    return hashlib.sha256(secret.encode()).hexdigest()[:12]


def check_log(level: str, kind: str) -> None:
    """Raises `InvalidInput`."""
    if level not in LEVELS:
        raise InvalidInput("log_level", level, f"give one of {', '.join(LEVELS)}")
    if kind not in FORMATS:
        raise InvalidInput("log_format", kind, f"give one of {', '.join(FORMATS)}")


def set_up_logs(*, level: str = "warning", kind: str = "text") -> None:
    """Send records of `level` and above to stderr. Raises `InvalidInput`."""
    check_log(level, kind)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_ids)
    handler.setFormatter(_json() if kind == "json" else _Lines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _add_ids(record: logging.LogRecord) -> bool:
    for name, value in _ids.get().items():
        if not hasattr(record, name):
            setattr(record, name, value)
    return True


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter  # only processes that log so need it

    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        timestamp="time",
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        json_ensure_ascii=True,
    )


class _Lines(logging.Formatter):
    """`2026-11-26 20:15:01,123 INFO ciar_cloud.servicer: image finished image=... calls=74`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        extra = [f"{name}={value}" for name, value in extra_of(record).items()]
        return " ".join([super().formatMessage(record), *extra])


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record has beyond its text."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def fields(**values: Any) -> dict[str, Any]:
    """For `extra=`: seconds to four digits, so that lines stay readable."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
