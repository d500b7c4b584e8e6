"""Who gets into a step, who waits, who is dropped; and whose slot is taken."""

import math

import pytest
import torch

from ciar.errors import DeadlineExceeded, InvalidInput, Overloaded
from ciar.session import SessionState
from ciar.types import ImageRequest, SamplingParams, VerifyBatch, no_features
from ciar_cloud.scheduler import GAP_SECONDS, Job, Scheduler, Seat
from ciar_cloud.slots import PATIENCE_SECONDS, SlotPool

ROWS = 5  # of a condition


def new_scheduler(
    *,
    num_slots: int = 4,
    max_queue: int = 8,
    max_positions: int = 100,
    max_chunk: int = 100,
    min_idle: float = 0.0,
) -> Scheduler:
    slots: SlotPool[Seat] = SlotPool(num_slots, min_idle_seconds=min_idle)
    return Scheduler(
        slots, max_queue=max_queue, max_step_positions=max_positions, max_chunk_rows=max_chunk
    )


def new_seat(num_known: int = 0) -> Seat:
    request = ImageRequest(prompt="x", sampling=SamplingParams())
    state = SessionState(request, torch.zeros(ROWS, 8), num_tokens=16, vocab_size=24, feature_dim=4)
    state.tokens = [1] * num_known
    return Seat(state=state, idle_since=0.0)


def prefix(seat: Seat, *, deadline: float = math.inf) -> Job:
    return Job(seat=seat, deliver=print, accepted=0.0, until=16, deadline=deadline)


def verify(seat: Seat, *, position: int = 0, epoch: int = 0) -> Job:
    batch = VerifyBatch(
        position=position, tokens=(1,), uncertain=(True,), features=no_features(4), epoch=epoch
    )
    return Job(seat=seat, deliver=print, accepted=0.0, batch=batch)


def test_a_step_takes_every_session_once_oldest_first() -> None:
    scheduler, seats = new_scheduler(), [new_seat() for _ in range(3)]
    jobs = [prefix(seat) for seat in seats]
    for job in jobs:
        scheduler.add(job)
    scheduler.add(prefix(seats[0]))  # behind the first one of its seat
    step = scheduler.next_step(1.0)
    assert step.jobs == jobs
    assert sorted(seat.slot for seat in seats if seat.slot is not None) == [0, 1, 2]
    assert scheduler.num_waiting == 1
    assert all(job.queue_seconds == 1.0 for job in jobs)
    assert scheduler.next_step(1.0).jobs == []  # all are running


def test_a_long_work_goes_to_the_end_of_the_queue_after_each_step() -> None:
    scheduler = new_scheduler(max_positions=ROWS)
    long, short = prefix(new_seat()), prefix(new_seat())
    scheduler.add(long)
    scheduler.add(short)
    order = []
    for _ in range(4):
        (job,) = scheduler.next_step(0.0).jobs
        order.append(job)
        scheduler.end_step([(job, False)], 0.0)
    assert order == [long, short, long, short]


def test_a_step_is_bounded_by_its_new_rows_but_never_empty() -> None:
    scheduler = new_scheduler(max_positions=ROWS + 2)
    huge, small, other = prefix(new_seat(num_known=12)), prefix(new_seat()), prefix(new_seat())
    for job in (huge, small, other):
        scheduler.add(job)
    assert scheduler.next_step(0.0).jobs == [huge]
    assert scheduler.next_step(0.0).jobs == [small]
    assert scheduler.next_step(0.0).jobs == [other]


def test_what_does_not_fit_lets_smaller_ones_pass_and_is_first_next_time() -> None:
    scheduler = new_scheduler(max_positions=2 * ROWS)
    first, huge, small = prefix(new_seat()), prefix(new_seat(num_known=12)), prefix(new_seat())
    for job in (first, huge, small):
        scheduler.add(job)
    assert scheduler.next_step(0.0).jobs == [first, small]
    scheduler.add(prefix(new_seat()))
    assert scheduler.next_step(0.0).jobs == [huge]


def test_a_passed_deadline_drops_the_work_unrun() -> None:
    scheduler, seat = new_scheduler(), new_seat()
    late, next_one = prefix(seat, deadline=1.0), verify(seat)
    scheduler.add(late)
    scheduler.add(next_one)
    step = scheduler.next_step(1.0)
    assert step.jobs == [next_one]
    ((job, error),) = step.dropped
    assert job is late
    assert isinstance(error, DeadlineExceeded)
    assert scheduler.num_waiting == 0


def test_batches_of_older_epochs_are_dropped_without_an_answer() -> None:
    scheduler, seat = new_scheduler(), new_seat()
    old, new = verify(seat, epoch=0), verify(seat, epoch=1)
    scheduler.add(old)
    scheduler.add(new)
    step = scheduler.next_step(0.0)
    assert step.jobs == [new]
    assert step.dropped == [(old, None)]


def test_what_a_dropped_work_has_drawn_is_forgotten() -> None:
    """It was void before its verdict was told, so nobody knows of it."""
    scheduler, seat = new_scheduler(), new_seat(num_known=4)
    old, new = verify(seat, position=4, epoch=0), verify(seat, position=5, epoch=1)
    scheduler.add(old)
    assert scheduler.next_step(0.0).jobs == [old]
    seat.state.tokens += [7, 8]  # a correction, and what was drawn on
    scheduler.add(new)
    scheduler.end_step([(old, False)], 0.0)
    step = scheduler.next_step(0.0)
    assert step.dropped == [(old, None)] and seat.state.tokens == [1] * 4
    assert new.leaves_gap and step.jobs == []


def test_a_full_queue_refuses_with_a_hint() -> None:
    scheduler = new_scheduler(max_queue=2)
    scheduler.add(prefix(new_seat()))
    scheduler.backlog.check_room()
    scheduler.add(prefix(new_seat()))
    with pytest.raises(Overloaded) as caught:
        scheduler.backlog.check_room()
    assert caught.value.retry_seconds > 0
    scheduler.next_step(0.0)
    scheduler.backlog.check_room()


def test_who_opens_many_sessions_keeps_nobody_waiting() -> None:
    """A step has room for two: one of each caller, however late the second one comes."""
    scheduler = new_scheduler(num_slots=8, max_positions=2 * (ROWS + 1))
    seats = [new_seat() for _ in range(5)]
    for seat, caller in zip(seats, ("a", "a", "a", "a", "b"), strict=True):
        seat.caller = caller
        scheduler.add(prefix(seat))
    step = scheduler.next_step(0.0)
    assert [job.seat for job in step.jobs] == [seats[0], seats[4]]
    scheduler.end_step([(job, False) for job in step.jobs], 1.0)
    step = scheduler.next_step(1.0)
    assert [job.seat for job in step.jobs] == [seats[1], seats[4]]


def test_one_caller_may_take_a_share_of_the_queue() -> None:
    """The others still get in, and what was dropped or closed does not count."""
    scheduler = new_scheduler(max_queue=4)
    seats = [new_seat(), new_seat()]
    for seat in seats:
        seat.caller = "alice"
        scheduler.add(prefix(seat))
    scheduler.backlog.check_room("alice")
    with pytest.raises(Overloaded, match="share"):
        scheduler.backlog.check_room("alice", share=0.5)
    scheduler.backlog.check_room("bob", share=0.5)
    scheduler.close(seats[0])
    scheduler.backlog.check_room("alice", share=0.5)


def test_the_longest_idle_session_loses_its_slot() -> None:
    scheduler = new_scheduler(num_slots=2)
    seats = [new_seat(), new_seat()]
    for now, seat in enumerate(seats):
        scheduler.add(prefix(seat))
        scheduler.end_step([(job, True) for job in scheduler.next_step(0.0).jobs], float(now))
        seat.state.num_cached = 3
    newcomer = new_seat()
    scheduler.add(prefix(newcomer))
    scheduler.next_step(5.0)
    assert (seats[0].slot, seats[0].state.num_cached) == (None, -1)
    assert (seats[1].slot, seats[1].state.num_cached) == (1, 3)
    assert newcomer.slot == 0
    assert scheduler.slots.num_evictions == 1


def test_working_and_just_idle_sessions_keep_their_slots() -> None:
    scheduler, holder, newcomer = new_scheduler(num_slots=1, min_idle=2.0), new_seat(), new_seat()
    scheduler.add(prefix(holder))
    running = scheduler.next_step(0.0).jobs
    impatient = prefix(newcomer, deadline=9.0)
    impatient.accepted = 4.5  # it has not waited long
    scheduler.add(impatient)
    assert scheduler.next_step(1.0).jobs == []
    assert scheduler.wake_at() == 9.0  # only the deadline can change that by itself
    scheduler.end_step([(running[0], True)], 3.0)
    assert scheduler.next_step(4.9).jobs == []
    assert scheduler.wake_at() == 5.0
    assert [job.seat for job in scheduler.next_step(5.0).jobs] == [newcomer]


def test_closing_frees_the_slot_but_never_under_a_running_step() -> None:
    scheduler, seat = new_scheduler(num_slots=1), new_seat()
    job = prefix(seat)
    scheduler.add(job)
    scheduler.add(verify(seat))
    scheduler.next_step(0.0)
    scheduler.close(seat)
    assert scheduler.slots.num_in_use == 1
    assert scheduler.num_waiting == 0
    scheduler.end_step([(job, False)], 0.0)
    assert scheduler.slots.num_in_use == 0
    scheduler.add(verify(seat))  # from a stream that has not noticed
    assert scheduler.num_waiting == 0
    assert scheduler.next_step(0.0).jobs == []


def test_closing_twice_is_harmless() -> None:
    scheduler, seat = new_scheduler(), new_seat()
    scheduler.add(prefix(seat))
    scheduler.close(seat)
    scheduler.close(seat)
    assert scheduler.num_waiting == 0
    assert scheduler.next_step(0.0).jobs == []


def test_no_slots_is_no_pool() -> None:
    with pytest.raises(InvalidInput, match="slots"):
        SlotPool(0)


def test_who_has_waited_long_takes_a_slot_between_two_works_of_another() -> None:
    """Sessions that are never idle for long share a slot by turns, and none waits for an end."""
    scheduler = new_scheduler(num_slots=1, min_idle=10.0)
    busy, other = new_seat(), new_seat()
    first, waiting = verify(busy), verify(other)
    scheduler.add(first)
    assert scheduler.next_step(0.0).jobs == [first]
    scheduler.add(waiting)
    assert scheduler.next_step(0.0).jobs == []
    scheduler.end_step([(first, True)], 0.3)
    assert scheduler.next_step(0.4).jobs == []
    assert scheduler.wake_at() == PATIENCE_SECONDS
    again = verify(busy, epoch=1)
    scheduler.add(again)
    assert scheduler.next_step(PATIENCE_SECONDS).jobs == [again]  # it is at work: nothing is taken
    assert scheduler.wake_at() == math.inf
    later = PATIENCE_SECONDS + 0.5
    scheduler.end_step([(again, True)], later)
    assert scheduler.wake_at() == later
    assert scheduler.next_step(later).jobs == [waiting]
    assert scheduler.slots.num_evictions == 1 and busy.slot is None


def test_a_long_catch_up_leaves_room_for_others() -> None:
    """It is fed in parts, so it counts by its part."""
    scheduler = new_scheduler(max_positions=2 * ROWS, max_chunk=ROWS)
    long, short = verify(new_seat(num_known=12), position=12), verify(new_seat())
    scheduler.add(long)
    scheduler.add(short)
    assert scheduler.next_step(0.0).jobs == [long, short]


def test_a_batch_that_leaves_a_gap_waits_for_what_belongs_before_it() -> None:
    scheduler, seat = new_scheduler(), new_seat()
    early, first = verify(seat, position=1), verify(seat)
    scheduler.add(early)
    assert scheduler.next_step(0.0).jobs == []
    assert scheduler.wake_at() == GAP_SECONDS
    scheduler.add(first)
    (job,) = scheduler.next_step(0.1).jobs
    assert job is first
    seat.state.tokens = [1]
    scheduler.end_step([(first, True)], 0.2)
    assert scheduler.next_step(0.2).jobs == [early]


def test_a_gap_that_nobody_closes_is_not_waited_for() -> None:
    scheduler, seat = new_scheduler(), new_seat()
    early = verify(seat, position=1)
    scheduler.add(early)
    assert scheduler.next_step(GAP_SECONDS).jobs == [early]  # and is refused when it begins


def test_steps_tell_which_works_begin() -> None:
    scheduler, seat = new_scheduler(), new_seat()
    job = prefix(seat)
    scheduler.add(job)
    assert scheduler.next_step(0.0).started == [job]
    scheduler.end_step([(job, False)], 0.0)
    step = scheduler.next_step(0.0)
    assert (step.jobs, step.started) == ([job], [])
