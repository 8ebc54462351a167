"""Which model a trainer goes on with, and when it must not begin."""

from pathlib import Path

import pytest

from millrace.runtime.errors import UserError
from millrace.training.online.ownership import choose_lineage, next_epoch
from millrace.training.publish.published import Published
from millrace.training.state.checkpoint import Restored
from millrace.training.state.lease import Owner

KNOWN = Published(known=True, saved=True, lineage="a", epoch=7, newest_epoch=7, version=99)
NOBODY, NONE = Owner(), Restored()


def saved(lineage: str, epoch: int = 7) -> Restored:
    return Restored(name="12", lineage=lineage, epoch=epoch)


def choose(published: Published, restored: Restored, before: Owner = NOBODY, new_model: bool = False) -> str:
    return choose_lineage(published, restored, before, Path("/m"), new_model)


def test_a_model_that_nobody_knows_is_born_with_a_lineage_and_keeps_it() -> None:
    born = choose(Published(), NONE)
    assert len(born) == 32
    assert choose(Published(), NONE, Owner(lineage=born, epoch=1)) == born
    assert choose(KNOWN, saved("a")) == "a"


def test_a_checkpoint_and_events_of_before_there_were_lineages_go_on_with_a_new_one() -> None:
    old_events = Published(known=True, saved=True, version=99)
    assert len(choose(old_events, saved("", 0))) == 32
    assert choose(old_events, saved("", 0), Owner(lineage="b", epoch=1)) == "b"
    assert choose(KNOWN, saved("", 0), Owner(lineage="a", epoch=7)) == "a"


@pytest.mark.parametrize(
    ("restored", "before", "problem"),
    [
        (NONE, NOBODY, "it holds no checkpoint"),
        (NONE, Owner(lineage="a", epoch=8), "it holds no checkpoint"),  # there was one: the model had been saved
        (NONE, Owner(lineage="b", epoch=3), "it holds no checkpoint"),
        (saved("b", 3), Owner(lineage="b", epoch=3), "its newest checkpoint is of lineage b"),
        (saved("", 0), NOBODY, "its newest checkpoint is of lineage unknown"),
    ],
)
def test_what_does_not_continue_the_model_that_readers_know_is_refused_unless_it_is_meant(
    restored: Restored, before: Owner, problem: str
) -> None:
    with pytest.raises(UserError, match=f"{problem}, but model.events knows this model .lineage a, epoch 7, .*99"):
        choose(KNOWN, restored, before)
    assert choose(KNOWN, restored, before, new_model=True) not in ("", "a", "b")


def test_a_new_model_is_still_meant_after_a_crash_before_anybody_heard_of_it() -> None:
    assert choose(KNOWN, NONE, Owner(lineage="b", epoch=8)) == "b"
    assert choose(KNOWN, saved("b", 8), Owner(lineage="b", epoch=8)) == "b"


def test_a_model_that_was_killed_before_its_first_checkpoint_begins_again() -> None:
    never_saved = Published(known=True, saved=False, lineage="a", epoch=7, newest_epoch=7, version=99)
    assert choose(never_saved, NONE, Owner(lineage="a", epoch=7)) == "a"


def test_a_flag_that_is_always_given_changes_nothing_for_a_folder_that_goes_on() -> None:
    assert choose(KNOWN, saved("a"), new_model=True) == "a"


def test_an_epoch_is_above_all_that_any_place_knows() -> None:
    assert next_epoch(KNOWN, saved("a", 9), Owner(epoch=8), exported=4) == 10
    assert next_epoch(KNOWN, NONE, NOBODY, exported=0) == 8
