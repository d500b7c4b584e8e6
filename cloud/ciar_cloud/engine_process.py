"""`python -m ciar_cloud.engine_process FD PLAN`: the model in a process of its own.

It reads what the server says (`engine_wire`) between the steps of an `Engine`, and while there is
nothing to do. The process ends with the socket: whoever kills the server ends it, too. It ignores
SIGINT and SIGTERM, for the server decides when images are finished.
"""

import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciar.errors import CiarError, EngineError
from ciar.logs import extra_of
from ciar.models.inter_head import DraftModel
from ciar.models.packed import pack
from ciar.target import Target, TargetModel
from ciar.types import no_features
from ciar_cloud.bundle import DTYPES, check_device, load_redraft
from ciar_cloud.engine import Bell, Engine
from ciar_cloud.engine_wire import (
    FrameReader,
    Head,
    Recorder,
    batch_from_frame,
    encode_frame,
    error_to_json,
    outcome_to_json,
    state_from_frame,
)
from ciar_cloud.kv_budget import choose_slots
from ciar_cloud.process import set_threads
from ciar_cloud.scheduler import Job, Outcome, Scheduler, Seat
from ciar_cloud.slots import SlotPool

EXIT_DIED = 1  # the engine ended, or never began
READ_BYTES = 1 << 18
SIGN_SECONDS = 0.25  # without a word to the server, while steps end and nothing comes of them yet


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """What an engine process runs; see `ServeConfig`."""

    folder: str  # of the target
    draft: str  # folder of the draft model that recomputes features; empty: none does
    device: str
    dtype: str
    threads: int
    slots: int
    kv_budget: int
    min_idle_seconds: float
    max_step_positions: int
    max_chunk_rows: int
    cuda_graphs: bool
    slow_step_seconds: float

    def command(self, descriptor: int) -> list[str]:
        """Starts the process with its end of the socket."""
        plan = json.dumps(asdict(self))
        return [sys.executable, "-m", "ciar_cloud.engine_process", str(descriptor), plan]


def build_engine(
    plan: EnginePlan,
    model: TargetModel,
    draft: DraftModel | None,
    observer: Any,
    *,
    max_queue: int,
    **hooks: Any,
) -> Engine:
    """Slots and scheduler around a loaded target, and a draft model to recompute features with."""
    num_slots = choose_slots(
        model,
        draft,
        slots=plan.slots,
        kv_budget=plan.kv_budget,
        has_static_steps=plan.cuda_graphs,
    )
    slots: SlotPool[Seat] = SlotPool(num_slots, min_idle_seconds=plan.min_idle_seconds)
    scheduler = Scheduler(
        slots,
        max_queue=max_queue,
        max_step_positions=plan.max_step_positions,
        max_chunk_rows=plan.max_chunk_rows,
    )
    target = Target(model, num_slots=num_slots, has_static_steps=plan.cuda_graphs, draft=draft)
    slow = plan.slow_step_seconds
    return Engine(target, scheduler, observer, slow_step_seconds=slow, **hooks)


class EngineServer(Bell):
    """An engine behind a socket. One thread reads, runs steps and answers: no lock, no handing over
    between threads. (Another one watches the socket, for a step may hang.)
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = FrameReader()
        self._recorder = Recorder()
        self._seats: dict[int, Seat] = {}
        self._outcomes: list[list[Any]] = []
        self._told_in_use = 0
        self._said = 0.0  # clock time of the last step it was told of

    def run(self, plan: EnginePlan) -> None:
        """Load, then serve until the socket closes or the engine dies."""
        logging.getLogger().addHandler(SocketLog(self))
        threading.Thread(target=exit_with, args=(self._connection,), daemon=True).start()
        try:
            engine, model = self._load(plan)
        except CiarError as error:
            self.send({"say": "failed", "error": error_to_json(error)})
            return
        except Exception as error:
            failure = EngineError(f"the engine cannot start: {type(error).__name__}: {error}")
            self.send({"say": "failed", "error": error_to_json(failure)})
            return
        self._engine, config = engine, model.config
        self._sizes = {
            "num_tokens": config.num_tokens,
            "vocab_size": config.vocab_size,
            "feature_dim": model.feature_dim,
        }
        self._no_features = no_features(model.feature_dim)
        gc.freeze()
        self.send({"say": "ready", "slots": engine.num_slots})
        engine.run_here(self._post)

    def _load(self, plan: EnginePlan) -> tuple[Engine, TargetModel]:
        set_threads(plan.threads)
        check_device(plan.device)
        folder, dtype = Path(plan.folder), DTYPES[plan.dtype]
        model = TargetModel.load(folder, device=plan.device, dtype=dtype)
        pack(model.transformer)
        draft = load_redraft(Path(plan.draft), device=plan.device) if plan.draft else None
        engine = build_engine(
            plan,
            model,
            draft,
            self._recorder,
            max_queue=sys.maxsize,  # the server has asked for room
            on_start=self._tell_started,
            bell=self,
        )
        engine.warm_up()
        return engine, model

    def send(self, head: Head) -> None:
        """A server that is gone ends the process."""
        try:
            self._connection.sendall(encode_frame(head))
        except OSError:
            os._exit(0)

    # ------------------------------------------------------------------------- as the engine's bell

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def notify(self) -> None:
        pass

    def collect(self) -> None:
        """Take all that the server has said so far, and let it know that steps go on."""
        if time.monotonic() - self._said >= SIGN_SECONDS:
            self._say_step([])
        while select.select([self._connection], [], [], 0)[0]:
            self._read()

    def wait(self, seconds: float | None) -> None:
        """Until the server says something; what was observed does not wait for longer than that."""
        self._say_step([])
        if select.select([self._connection], [], [], seconds)[0]:
            self._read()

    def _read(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            os._exit(0)  # the server is gone, or wants no more
        for head, tensors in self._reader.feed(data):
            getattr(self, f"_{head['do']}")(head, tensors)

    # ------------------------------------------------------------------------- what the server says

    def _open(self, head: Head, tensors: list[Tensor]) -> None:
        state = state_from_frame(head, tensors, **self._sizes)
        self._seats[head["seat"]] = self._engine.open(state, caller=head["caller"])

    def _close(self, head: Head, tensors: list[Tensor]) -> None:
        self._engine.close(self._seats.pop(head["seat"]))
        self._say_step([])

    def _draw(self, head: Head, tensors: list[Tensor]) -> None:
        first = len(self._seats[head["seat"]].state.tokens)
        self._engine.submit(self._job(head, first=first, until=head["until"]))

    def _verify(self, head: Head, tensors: list[Tensor]) -> None:
        batch = batch_from_frame(head, tensors, nothing=self._no_features)
        self._engine.submit(self._job(head, batch=batch))

    def _job(self, head: Head, *, first: int | None = None, **work: Any) -> Job:
        """first: tokens from there on are told with the outcome."""
        seat, number = self._seats[head["seat"]], head["job"]

        def deliver(outcome: Outcome) -> None:
            tokens = [] if first is None else seat.state.tokens[first:]
            self._outcomes.append([number, outcome_to_json(outcome), tokens])

        times = {"accepted": head["accepted"], "deadline": head["deadline"]}
        return Job(seat=seat, deliver=deliver, number=number, **times, **work)

    # ------------------------------------------------------------------------- what it hears

    def _tell_started(self, jobs: list[Job]) -> None:
        self.send({"say": "started", "jobs": [job.number for job in jobs]})

    def _post(self, call: Any, *arguments: Any) -> None:
        call(*arguments)
        outcomes, self._outcomes = self._outcomes, []
        self._say_step(outcomes)

    def _say_step(self, outcomes: list[list[Any]]) -> None:
        """Outcomes, with what was observed and how many slots are in use."""
        events, in_use = self._recorder.take(), self._engine.num_slots_in_use
        if outcomes or events or in_use != self._told_in_use:
            self._told_in_use = in_use
            step = {"say": "step", "outcomes": outcomes, "events": events, "in_use": in_use}
            self.send(step)
            self._said = time.monotonic()


def exit_with(connection: socket.socket) -> None:
    """End the process when the other side of a socket has gone, whatever other threads do."""
    watch = select.poll()
    watch.register(connection, select.POLLRDHUP)
    watch.poll()
    os._exit(0)


class SocketLog(logging.Handler):
    """Records of the engine go to the server's log."""

    def __init__(self, server: EngineServer) -> None:
        super().__init__(logging.WARNING)
        self._server = server

    def emit(self, record: logging.LogRecord) -> None:
        head = {"say": "log", "name": record.name, "level": record.levelno}
        self._server.send({**head, "text": self.format(record), "extra": extra_of(record)})


def main() -> None:
    descriptor, plan = int(sys.argv[1]), EnginePlan(**json.loads(sys.argv[2]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as connection, torch.inference_mode():
        EngineServer(connection).run(plan)
    sys.exit(EXIT_DIED)


if __name__ == "__main__":
    main()
