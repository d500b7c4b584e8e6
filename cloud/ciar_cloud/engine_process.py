"""`python -m ciar_cloud.engine_process FD PLAN`: the model in a process of its own.

The main thread reads what the server says (`engine_wire`) and hands it to an `Engine`; its model
thread answers. The process ends with the socket: whoever kills the server ends it, too. It ignores
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciar.errors import CiarError, EngineError
from ciar.models.packed import pack
from ciar.target import Target, TargetModel
from ciar_cloud.bundle import DTYPES, check_device
from ciar_cloud.engine import Engine
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

EXIT_DIED = 1  # the model thread ended, or never began
FLUSH_SECONDS = 0.1  # how long the server does without what was observed
READ_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """What an engine process runs; see `ServeConfig`."""

    folder: str  # of the target
    device: str
    dtype: str
    threads: int
    slots: int
    kv_budget: int
    min_idle_seconds: float
    max_step_positions: int
    max_chunk_rows: int
    cuda_graphs: bool

    def command(self, descriptor: int) -> list[str]:
        """Starts the process with its end of the socket."""
        plan = json.dumps(asdict(self))
        return [sys.executable, "-m", "ciar_cloud.engine_process", str(descriptor), plan]


def build_engine(
    plan: EnginePlan, model: TargetModel, observer: Any, *, max_queue: int, **hooks: Any
) -> Engine:
    """Slots and scheduler around a loaded target."""
    num_slots = choose_slots(
        model,
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
    target = Target(model, num_slots=num_slots, has_static_steps=plan.cuda_graphs)
    return Engine(target, scheduler, observer, **hooks)


class EngineServer:
    """An engine behind a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._recorder = Recorder()
        self._seats: dict[int, Seat] = {}
        self._outcomes: list[list[Any]] = []
        self._telling = threading.Lock()
        self._told_in_use = 0

    def run(self, plan: EnginePlan) -> None:
        """Load, then serve until the socket closes."""
        logging.getLogger().addHandler(SocketLog(self))
        try:
            set_threads(plan.threads)
            check_device(plan.device)
            folder, dtype = Path(plan.folder), DTYPES[plan.dtype]
            model = TargetModel.load(folder, device=plan.device, dtype=dtype)
            pack(model.transformer)
            engine = build_engine(
                plan,
                model,
                self._recorder,
                max_queue=sys.maxsize,  # the server has asked for room
                on_start=self._tell_started,
            )
            engine.warm_up()
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
        gc.freeze()
        engine.begin(self._post, on_death=lambda: os._exit(EXIT_DIED))
        self.send({"say": "ready", "slots": engine.num_slots})
        self._serve()

    def send(self, head: Head) -> None:
        """From either thread. A server that is gone ends the process."""
        frame = encode_frame(head)
        with self._sending:
            try:
                self._connection.sendall(frame)
            except OSError:
                os._exit(0)

    def _serve(self) -> None:
        reader = FrameReader()
        while True:
            readable, _, _ = select.select([self._connection], [], [], FLUSH_SECONDS)
            if not readable:
                self._flush()
                continue
            try:
                data = self._connection.recv(READ_BYTES)
            except ConnectionResetError:  # the server was killed
                return
            if not data:
                return
            for head, tensors in reader.feed(data):
                getattr(self, f"_{head['do']}")(head, tensors)

    def _open(self, head: Head, tensors: list[Tensor]) -> None:
        state = state_from_frame(head, tensors, **self._sizes)
        self._seats[head["seat"]] = self._engine.open(state, caller=head["caller"])

    def _close(self, head: Head, tensors: list[Tensor]) -> None:
        self._engine.close(self._seats.pop(head["seat"]))
        self._flush()

    def _draw(self, head: Head, tensors: list[Tensor]) -> None:
        first = len(self._seats[head["seat"]].state.tokens)
        self._engine.submit(self._job(head, first=first, until=head["until"]))

    def _verify(self, head: Head, tensors: list[Tensor]) -> None:
        self._engine.submit(self._job(head, batch=batch_from_frame(head, tensors)))

    def _job(self, head: Head, *, first: int | None = None, **work: Any) -> Job:
        """first: tokens from there on are told with the outcome."""
        seat, number = self._seats[head["seat"]], head["job"]

        def deliver(outcome: Outcome) -> None:
            tokens = [] if first is None else seat.state.tokens[first:]
            self._outcomes.append([number, outcome_to_json(outcome), tokens])

        times = {"accepted": head["accepted"], "deadline": head["deadline"]}
        return Job(seat=seat, deliver=deliver, number=number, **times, **work)

    # ---------------------------------------------------------------------------- model thread

    def _tell_started(self, jobs: list[Job]) -> None:
        self.send({"say": "started", "jobs": [job.number for job in jobs]})

    def _post(self, call: Any, *arguments: Any) -> None:
        call(*arguments)
        outcomes, self._outcomes = self._outcomes, []
        self._say_step(outcomes)

    def _flush(self) -> None:
        """What was observed, and which slots are in use, when no outcome tells."""
        self._say_step([])

    def _say_step(self, outcomes: list[list[Any]]) -> None:
        with self._telling:
            events, in_use = self._recorder.take(), self._engine.num_slots_in_use
            if outcomes or events or in_use != self._told_in_use:
                self._told_in_use = in_use
                step = {"say": "step", "outcomes": outcomes, "events": events, "in_use": in_use}
                self.send(step)


class SocketLog(logging.Handler):
    """Records of the engine go to the server's log."""

    def __init__(self, server: EngineServer) -> None:
        super().__init__(logging.WARNING)
        self._server = server

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._server.send(
            {"say": "log", "name": record.name, "level": record.levelno, "text": text}
        )


def main() -> None:
    descriptor, plan = int(sys.argv[1]), EnginePlan(**json.loads(sys.argv[2]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as connection, torch.inference_mode():
        EngineServer(connection).run(plan)
    os._exit(0)  # the model thread may be in a step that nobody waits for


if __name__ == "__main__":
    main()
