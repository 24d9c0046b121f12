"""A change by one worker's administrator is over when every worker has made it, whoever dies."""

from __future__ import annotations

import threading
from multiprocessing import Pipe

import pytest

from serving.changes import Changes, GroupAdmin
from serving.errors import LoadFailed, ModelNotFound, ModelNotReady
from serving.messages import Change, Do, Told


def loading(name: str) -> Change:
    return Change("load", (name,), ("model", name))


def unloading(name: str) -> Change:
    return Change("unload", (name,), ("model", name))


def test_who_asked_is_told_when_the_last_worker_is_done() -> None:
    changes = Changes()
    order = changes.begin(1, Do(7, loading("m")), [0, 1, 2])
    assert order.change == loading("m")
    assert changes.done(2, order.number, None) is None
    assert changes.done(1, order.number, None) is None
    assert list(changes.journal) == []
    assert changes.done(0, order.number, None) == (1, Told(7, None))
    assert changes.journal == (loading("m"),)


def test_who_asked_is_told_the_first_error() -> None:
    changes, error = Changes(), ModelNotFound("no model 'm'")
    order = changes.begin(0, Do(7, loading("m")), [0, 1])
    assert changes.done(1, order.number, error) is None
    assert changes.done(0, order.number, ModelNotFound("later")) == (0, Told(7, error))
    assert list(changes.journal) == []


def test_the_journal_keeps_the_last_of_its_kind_in_the_order_of_changes() -> None:
    changes = Changes()
    for number, change in enumerate((loading("a"), loading("b"), unloading("a"))):
        changes.done(0, changes.begin(0, Do(number, change), [0]).number, None)
    assert changes.journal == (loading("b"), unloading("a"))
    failed = changes.begin(0, Do(9, loading("a")), [0])
    changes.done(0, failed.number, LoadFailed("an older version is served"))
    assert changes.journal == (loading("b"), loading("a"))


def test_nobody_waits_for_a_worker_that_died() -> None:
    changes = Changes()
    order = changes.begin(0, Do(7, loading("m")), [0, 1])
    assert changes.done(0, order.number, None) is None
    assert changes.leave(1) == [(0, Told(7, None))]


def test_what_a_dead_worker_asked_for_is_made_but_its_successor_is_not_told() -> None:
    changes = Changes()
    order = changes.begin(0, Do(7, loading("m")), [0, 1])
    assert changes.leave(0) == []
    assert changes.join(0) == [order]
    assert changes.done(1, order.number, None) is None
    assert changes.done(0, order.number, None) is None
    assert changes.journal == (loading("m"),)


def test_a_new_worker_makes_the_change_that_is_under_way_when_it_starts() -> None:
    changes = Changes()
    order = changes.begin(0, Do(7, loading("m")), [0])
    assert changes.join(1) == [order]
    assert changes.done(0, order.number, None) is None
    assert changes.done(1, order.number, None) == (0, Told(7, None))
    assert changes.join(2) == []


def test_an_administrator_waits_for_the_answer_of_his_own_change() -> None:
    ours, theirs = Pipe()
    admin = GroupAdmin(theirs)
    outcomes: dict[str, str] = {}

    def ask(name: str) -> None:
        try:
            admin.load(name)
            outcomes[name] = "done"
        except (ModelNotFound, ModelNotReady) as error:
            outcomes[name] = str(error)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    asked = {
        message.change.arguments[0]: message.number
        for message in (ours.recv(), ours.recv(), ours.recv())
    }
    admin.told(Told(asked["b"], ModelNotFound("no model 'b'")))
    admin.told(Told(asked["a"], None))
    admin.end()  # the server stops, and nobody will tell any more
    for thread in threads:
        thread.join()
    assert outcomes == {"a": "done", "b": "no model 'b'", "c": "the server is stopping"}
    admin.told(Told(asked["c"], None))  # too late, and no harm
    with pytest.raises(ModelNotReady, match="the server is stopping"):
        admin.load("d")
    for end in (ours, theirs):
        end.close()
