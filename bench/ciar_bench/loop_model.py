"""A discrete-event model of the decoding loops: how long an image takes, and who does what when.

    e     the edge drafts a token                r  a round trip, without the cloud's step
    C(k)  the cloud's step over k positions      T  tokens of an image

Nothing is computed but times: an image is a list of what would become of its tokens, and the rules
of how far to draft and when to ask are the edge's own (`ciar_edge.pace`). One session, one cloud.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ciar.types import Timings, Verdict
from ciar_edge.agreement import Agreement
from ciar_edge.pace import Pace

Lane = Literal["edge", "edge, in vain", "cloud"]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds. row: what another position adds to the cloud's step.  opening: of an image, beyond a
    round trip: the text encoder.
    """

    draft: float
    step: float
    row: float
    trip: float
    opening: float = 0.0

    def of_step(self, positions: int) -> float:
        """C(k)"""
        return self.step + self.row * (positions - 1)


@dataclass(frozen=True, slots=True)
class Token:
    """What becomes of a token, if the ones before it stand.

    doubt: how likely a difference is, as far as the edge knows.
    """

    is_uncertain: bool
    differs: bool
    doubt: float


@dataclass(frozen=True, slots=True)
class Span:
    """Somebody is busy."""

    lane: Lane
    start: float
    end: float


@dataclass(kw_only=True)
class Timeline:
    """An image as it would be decoded."""

    seconds: float = 0.0
    forwards: int = 0
    positions: int = 0
    drafts: int = 0
    round_trips: int = 0
    spans: list[Span] = field(default_factory=list)

    def step(self, start: float, positions: int, costs: Costs) -> float:
        """A step of the cloud that somebody waits for; its end."""
        end = start + costs.of_step(positions)
        self.forwards += 1
        self.positions += positions
        self.spans.append(Span("cloud", start, end))
        return end


def tokens_like(
    uncertain: float, agreed: float, *, num_tokens: int, seed: int, sharpness: float = 0.9
) -> list[Token]:
    """Independent tokens: a share `uncertain` of them, of which `agreed` stand; the others all do,
    and nobody doubts it.

    sharpness: of what the scores tell about them; doubts are drawn from a Beta distribution with
        that sum of parameters: near 0 they tell all, far above 1 nothing.
    """
    dice, tokens = random.Random(seed), []
    for _ in range(num_tokens):
        if dice.random() >= uncertain:
            tokens.append(Token(is_uncertain=False, differs=False, doubt=0.0))
            continue
        doubt = 1 - agreed
        if 0 < agreed < 1:
            doubt = dice.betavariate(sharpness * (1 - agreed), sharpness * agreed)
        tokens.append(Token(is_uncertain=True, differs=dice.random() < doubt, doubt=doubt))
    return tokens


def base(num_tokens: int, costs: Costs, *, wave: Callable[[int], range] | None = None) -> Timeline:
    """The cloud alone, in one call: token by token, or wave by wave (`ciar.order.Order.wave`)."""
    image = Timeline()
    now, position = costs.opening + costs.trip / 2, 0
    while position < num_tokens:
        size = len(wave(position)) if wave else 1
        now, position = image.step(now, size, costs), position + size
    image.seconds = now + costs.trip / 2
    return image


def blocking(tokens: Sequence[Token], costs: Costs, *, num_prefix: int) -> Timeline:
    """One question at a time; the answer brings the next token along.

    tokens: those of the prefix, which the cloud draws, included.
    """
    image = base(num_prefix, costs)
    now, agreement = image.seconds, Agreement()
    num_kept, is_ahead, is_known = 0, False, False
    for position, token in enumerate(tokens[num_prefix:], num_prefix):
        if not is_ahead:
            image.spans.append(Span("edge", now, now + costs.draft))
            now += costs.draft
        image.drafts += 1
        was_known, is_known, is_ahead = is_known, False, False
        if not token.is_uncertain:
            num_kept += 1
            continue
        if was_known:
            continue
        is_likely = agreement.is_likely and position + 1 < len(tokens)
        positions = num_kept + 1 + is_likely
        asked, num_kept = now, 0
        now = image.step(now + costs.trip / 2, positions, costs) + costs.trip / 2
        image.round_trips += 1
        agreement.learn(int(not token.differs), 1)
        if is_likely:  # the next token was drafted meanwhile, and its draw comes along
            is_ahead = is_known = not token.differs
            image.drafts += token.differs
            lane: Lane = "edge, in vain" if token.differs else "edge"
            image.spans.append(Span(lane, asked, asked + costs.draft))
            now = max(now, asked + costs.draft)
    image.seconds = now
    return image


@dataclass(slots=True)
class _Flight:
    """stop: position of the first difference in it, or its end.  run_on: tokens drawn behind it."""

    end: int
    stop: int
    run_on: int
    sent: float
    seconds: float  # of its steps
    arrives: float


def optimistic(tokens: Sequence[Token], costs: Costs, *, num_prefix: int) -> Timeline:
    """Several questions on their way while the edge drafts on (`ciar_edge.optimistic`)."""
    image, pace = Timeline(), Pace()
    now, cloud_free = costs.opening + costs.trip, 0.0
    num_decided = num_drafted = num_sent = 0
    flights: deque[_Flight] = deque()
    drafting: list[Span] = []  # of tokens that are not decided yet
    known = range(0)  # positions whose tokens the last verdict brought along

    def asks(position: int) -> bool:
        return position < num_prefix or tokens[position].is_uncertain

    def differs(position: int) -> bool:
        return asks(position) and tokens[position].differs

    def doubt(first: int) -> float:
        stand = 1.0
        for position in range(first, num_drafted):
            if asks(position):
                stand *= 1 - tokens[position].doubt
        return 1 - stand

    def decide(end: int) -> None:
        nonlocal num_decided
        done = end - num_decided
        image.spans += drafting[:done]
        del drafting[:done]
        num_decided = end

    def correct(position: int) -> None:
        """The cloud's token there; all behind it was for nothing."""
        nonlocal num_drafted, num_sent
        decide(position + 1)
        image.spans += [Span("edge, in vain", span.start, span.end) for span in drafting]
        drafting.clear()
        flights.clear()
        num_drafted = num_sent = num_decided

    while num_decided < len(tokens):
        while flights and flights[0].arrives <= now:
            flight = flights.popleft()
            timings = Timings(compute_seconds=flight.seconds, num_forwards=1 + flight.run_on)
            verdict = Verdict(epoch=0, position=0, num_agreed=0, token=None, timings=timings)
            pace.answered(costs.trip + flight.seconds, verdict)
            image.round_trips += 1
            if flight.stop < flight.end:
                correct(flight.stop)
                known = range(num_decided, num_decided + flight.run_on)
            else:
                decide(flight.end)
                known = range(flight.end, flight.end + 1)
        if known and num_drafted > known[0]:  # what is known needs no asking
            position, known = known[0], known[1:]
            if num_sent > position or not asks(position):
                known = range(0)
            elif differs(position):
                correct(position)
            else:
                num_sent = position + 1
                decide(num_sent)
        if not flights:
            while num_decided < num_drafted and not asks(num_decided):
                decide(num_decided + 1)
        if num_decided == len(tokens):
            break
        open_questions = [p for p in range(max(num_sent, num_decided), num_drafted) if asks(p)]
        first = next((p for p in range(num_decided, num_drafted) if asks(p)), num_drafted)
        may_draft = num_drafted < len(tokens) and pace.may_draft(
            num_drafted - first, hope=1 - doubt(num_decided)
        )
        if open_questions and pace.is_due(len(flights), doubt=doubt(num_sent), can_draft=may_draft):
            end = open_questions[-1] + 1
            start = max(now + costs.trip / 2, cloud_free)
            is_void = any(flight.stop < flight.end for flight in flights)
            stop = next((p for p in range(num_sent, end) if differs(p)), end)
            arrives, seconds = float("inf"), 0.0
            run_on = min(pace.run_on, len(tokens) - stop - 1) if stop < end else 0
            if not is_void:  # behind a difference nothing is computed but what is drawn on
                cloud_free = image.step(start, end - num_sent + 1, costs)
                for _ in range(run_on):
                    cloud_free = image.step(cloud_free, 1, costs)
                arrives, seconds = cloud_free + costs.trip / 2, cloud_free - start
            flights.append(_Flight(end, stop, run_on, now, seconds, arrives))
            num_sent = end
        elif may_draft:
            drafting.append(Span("edge", now, now + costs.draft))
            now += costs.draft
            pace.drafted(costs.draft)
            num_drafted += 1
            image.drafts += 1
        else:
            now = max(now, flights[0].arrives)
    image.seconds = now
    return image


Loop = Callable[[Sequence[Token], Costs, int], Timeline]
LOOPS: dict[str, Loop] = {
    "base": lambda tokens, costs, num_prefix: base(len(tokens), costs),
    "blocking": lambda tokens, costs, num_prefix: blocking(tokens, costs, num_prefix=num_prefix),
    "optimistic": lambda tokens, costs, num_prefix: optimistic(
        tokens, costs, num_prefix=num_prefix
    ),
    "exact": lambda tokens, costs, _: optimistic(tokens, costs, num_prefix=len(tokens)),
}
