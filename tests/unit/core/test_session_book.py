"""The session map's entries of one node, without a map: which trips are made, in which order, and what follows from them."""

from collections.abc import Collection

from chatgrpc.core.session_book import Answer, Look, News, Put, Read, Remove, SessionBook, SessionEntry, Trip

PHONE = ("alice", "phone")
WEB = ("bob", "web")
HERE = SessionEntry(*PHONE, "node-1")
ELSEWHERE = SessionEntry(*PHONE, "node-2")
WEB_HERE = SessionEntry(*WEB, "node-1")


class Driven:
    """A book, and a map that answers what the test says."""

    def __init__(self) -> None:
        self.book = SessionBook("node-1", linger_ms=100, audit_interval_ms=10_000, settled_ms=500, tell_interval_ms=1_000)
        self.canary = Put((self.book.canary,))
        self.look = Look(self.book.canary.user_id)
        self.now_ms = 0
        self.under_way: Trip | None = None

    def goes(self) -> Trip | None:
        """The next trip."""
        assert self.under_way is None
        self.under_way = self.book.next_trip(self.now_ms)
        return self.under_way

    def comes(self, answer: Answer = ()) -> None:
        self.under_way = None
        self.book.answered(answer, self.now_ms)

    def fails(self) -> None:
        self.under_way = None
        self.book.failed(self.now_ms)

    def has_opened(self, *devices: tuple[str, str]) -> None:
        """Their entries stand."""
        for device in devices:
            self.book.opened(device, device)
        assert self.goes() == Put(tuple(SessionEntry(*device, "node-1") for device in devices))
        self.comes()
        assert self.book.take_news().written == list(devices)

    def runs_dry(self, stands: bool = True, found: Collection[SessionEntry] = ()) -> list[Trip]:
        """Makes all trips there are; what they find is always the same."""
        trips: list[Trip] = []
        while (trip := self.goes()) is not None:
            trips.append(trip)
            self.comes(stands if isinstance(trip, Look) else found if isinstance(trip, Read) else ())
        return trips


def test_where_all_stands_a_look_is_one_trip() -> None:
    driven = Driven()
    driven.has_opened(PHONE)
    driven.book.look(driven.now_ms)
    assert driven.runs_dry() == [driven.look]
    assert driven.book.take_news() == News(all_well=True)


def test_what_lacks_is_written_behind_the_nodes_own_entry_and_its_sessions_are_doubted() -> None:
    driven = Driven()
    driven.has_opened(PHONE, WEB)
    driven.book.look(driven.now_ms)
    assert driven.runs_dry(stands=False, found=[WEB_HERE, ELSEWHERE]) == [
        driven.look,
        driven.canary,
        Read(("alice", "bob")),
        Put((HERE,)),
    ]
    news = driven.book.take_news()
    assert (news.in_doubt, news.wrote_back, news.moved) == (True, True, [])


def test_after_a_trip_that_failed_all_is_looked_at_and_once_more_when_it_can_have_no_effect_any_more() -> None:
    driven = Driven()
    driven.has_opened(PHONE)
    driven.book.opened(WEB, WEB)
    driven.goes()
    driven.fails()
    assert driven.book.take_news() == News(written=[WEB])
    assert driven.book.unwritten == 1
    driven.book.look(driven.now_ms)
    assert driven.runs_dry(found=[HERE]) == [driven.look, driven.canary, Read(("alice",)), Put((WEB_HERE,))]
    assert driven.book.take_news().in_doubt
    driven.now_ms = 499
    driven.book.look(driven.now_ms)
    assert driven.runs_dry() == [driven.look]
    driven.now_ms = 500
    driven.book.look(driven.now_ms)
    assert driven.runs_dry(found=[HERE, WEB_HERE]) == [driven.look, driven.canary, Read(("alice", "bob"))]
    assert not driven.book.take_news().in_doubt


def test_while_the_map_is_away_those_whom_it_lacks_are_doubted_now_and_then() -> None:
    driven = Driven()
    driven.book.opened(PHONE, PHONE)
    driven.goes()
    driven.fails()
    told = []
    for now_ms in range(0, 2_001, 250):
        driven.now_ms = now_ms
        driven.book.look(now_ms)
        assert driven.goes() == driven.look
        driven.fails()
        assert driven.goes() is None
        told += [now_ms] if driven.book.take_news().in_doubt else []
    assert told == [0, 1_000, 2_000]


def test_who_opens_while_the_map_is_found_to_be_away_waits_no_longer() -> None:
    driven = Driven()
    driven.has_opened(WEB)
    driven.book.look(driven.now_ms)
    driven.goes()
    driven.book.opened(PHONE, PHONE)
    driven.fails()
    assert driven.book.take_news().written == [PHONE]
    assert driven.goes() is None
    driven.book.look(driven.now_ms)
    assert driven.runs_dry(found=[WEB_HERE]) == [driven.look, driven.canary, Read(("bob",)), Put((HERE,))]


def test_who_opens_waits_for_one_part_of_a_look_at_all_and_the_look_for_one_of_those_who_open() -> None:
    driven = Driven()
    devices = [(f"user{number:04}", "phone") for number in range(2_500)]
    driven.has_opened(*devices)
    driven.book.look(driven.now_ms)
    assert driven.goes() == driven.look
    driven.comes(False)
    trips: list[str] = []
    for number in range(8):
        driven.book.opened(("late", str(number)), number)
        trip = driven.goes()
        trips.append(type(trip).__name__ if trip != driven.canary else "canary")
        driven.comes([SessionEntry(user_id, "phone", "node-1") for user_id, _ in devices] if isinstance(trip, Read) else ())
    assert trips == ["Put", "canary", "Put", "Read", "Put", "Read", "Put", "Read"]


def test_nothing_comes_between_what_was_found_to_lack_and_its_writing() -> None:
    """Else an entry that was written meanwhile would be written again, and stand behind a newer one of another node."""
    driven = Driven()
    driven.has_opened(PHONE)
    driven.book.look(driven.now_ms)
    for answer in (False, ()):
        driven.goes()
        driven.comes(answer)
    assert driven.goes() == Read(("alice",))
    driven.book.opened(PHONE, "again")
    driven.comes([])
    assert driven.goes() == Put((HERE,))
    driven.comes([ELSEWHERE])
    assert driven.book.take_news().moved == [], "who writes back may be the one with the dead stream"
    assert driven.goes() == Put((HERE,))
    driven.comes([ELSEWHERE])
    assert driven.book.take_news().moved == [ELSEWHERE]


def test_who_has_left_is_taken_out_when_the_time_has_come_and_not_if_they_are_back() -> None:
    driven = Driven()
    driven.has_opened(PHONE, WEB)
    for device in (PHONE, WEB):
        driven.book.closed(device, driven.now_ms)
    driven.now_ms = 99
    driven.book.look(driven.now_ms)
    assert driven.runs_dry() == [driven.look]
    driven.has_opened(WEB)
    driven.now_ms = 100
    driven.book.look(driven.now_ms)
    assert driven.runs_dry() == [driven.look, Remove((HERE,))]


def test_a_device_has_moved_if_its_last_entry_says_so() -> None:
    driven = Driven()
    driven.has_opened(PHONE)
    for found, has_moved in (([ELSEWHERE, HERE], False), ([HERE, ELSEWHERE], True), ([], False)):
        driven.book.ask_moved(PHONE, "asked", driven.now_ms)
        assert driven.goes() == Read(("alice",))
        driven.comes(found)
        assert driven.book.take_news().verdicts == [("asked", has_moved)]
    driven.book.ask_moved(WEB, "never here", driven.now_ms)
    assert driven.book.take_news().verdicts == [("never here", False)]


def test_a_node_that_leaves_writes_nothing_any_more_and_keeps_nobody_waiting() -> None:
    driven = Driven()
    driven.has_opened(PHONE)
    driven.book.look(driven.now_ms)
    driven.goes()
    driven.book.leave("left")
    driven.book.opened(WEB, WEB)
    driven.fails()
    assert driven.goes() == Remove((HERE, WEB_HERE, driven.book.canary))
    driven.comes()
    driven.book.look(driven.now_ms)
    assert driven.runs_dry(stands=False) == [driven.look]
    assert sorted(map(str, driven.book.take_news().written)) == ["('bob', 'web')", "left"]
