"""Errors reach another process as they are."""

import pickle

import pytest

from ciar import errors
from ciar.errors import CiarError, InvalidInput, Overloaded, TryLater

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
SIMPLE = [kind for kind in KINDS if issubclass(kind, CiarError) and kind is not InvalidInput]


def through_pickle(error: CiarError) -> CiarError:
    found: CiarError = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert (str(found), found.args) == (str(error), error.args)
    assert vars(found) == vars(error)
    return found


@pytest.mark.parametrize("kind", SIMPLE)
def test_errors_come_back_whole(kind: type[CiarError]) -> None:
    through_pickle(kind("it says why"))


def test_later_stays_later() -> None:
    found = through_pickle(Overloaded("full", retry_seconds=3.0))
    assert isinstance(found, TryLater)
    assert found.retry_seconds == 3.0


def test_an_invalid_input_keeps_its_field_value_and_remedy() -> None:
    found = through_pickle(InvalidInput("prompt", "x" * 200, "give a shorter one"))
    assert isinstance(found, InvalidInput)
    assert found.field == "prompt"
    assert len(found.value) == 80
    assert found.remedy == "give a shorter one"
