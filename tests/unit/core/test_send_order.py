"""What a device sends to a chat is committed in the order in which it sent it first (M7)."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatgrpc.core.send_order import SendOrder

A, B, C = b"a", b"b", b"c"


def test_m7_sends_go_at_once_while_none_has_failed() -> None:
    order = SendOrder()
    assert [order.admit("chat", client_message_id) for client_message_id in (A, B, C)] == [True, True, True]


def test_m7_a_failed_send_holds_up_later_ones_to_its_chat_only() -> None:
    order = SendOrder()
    order.admit("chat", A)
    order.fail("chat", A)
    assert not order.admit("chat", B)
    assert order.admit("other chat", C)


def test_m7_failed_sends_come_again_in_their_order() -> None:
    order = SendOrder()
    for client_message_id in (A, B, C):
        order.admit("chat", client_message_id)
    for client_message_id in (A, B, C):
        order.fail("chat", client_message_id)
    assert not order.admit("chat", C), "B stands before it"
    assert order.admit("chat", A)
    assert not order.admit("chat", C), "B still stands before it"
    assert order.admit("chat", B)
    assert order.admit("chat", C)


def test_m7_what_was_held_up_keeps_its_place_too() -> None:
    order = SendOrder()
    order.admit("chat", A)
    order.fail("chat", A)
    assert not order.admit("chat", B)
    assert not order.admit("chat", C)
    assert order.admit("chat", A)
    assert not order.admit("chat", C)
    assert order.admit("chat", B)


def test_m7_what_has_its_outcome_holds_up_nobody() -> None:
    order = SendOrder()
    order.admit("chat", A)
    order.fail("chat", A)
    order.admit("chat", B)
    order.settle("chat", A)
    assert order.admit("chat", B)


def test_a_send_that_is_under_way_may_come_again() -> None:
    order = SendOrder()
    assert order.admit("chat", A)
    assert order.admit("chat", A)
    order.settle("chat", A)
    order.fail("chat", A)
    assert order.admit("chat", B), "its outcome is known, whatever the other try came to"


class Sends(RuleBasedStateMachine):
    """Against a list of what has no outcome yet, with a mark at what is to come again."""

    def __init__(self) -> None:
        super().__init__()
        self.order = SendOrder()
        self.model: dict[str, list[tuple[bytes, bool]]] = {"c1": [], "c2": []}

    chats = st.sampled_from(["c1", "c2"])
    ids = st.integers(0, 5).map(lambda number: bytes([number]))

    @rule(chat_id=chats, client_message_id=ids)
    def send(self, chat_id: str, client_message_id: bytes) -> None:
        sends = self.model[chat_id]
        names = [name for name, _ in sends]
        before = sends[: names.index(client_message_id)] if client_message_id in names else sends
        may_go = all(under_way for _, under_way in before)
        entry = (client_message_id, may_go)
        if client_message_id not in names:
            sends.append(entry)
        elif may_go:
            sends[names.index(client_message_id)] = entry
        else:
            may_go = sends[names.index(client_message_id)][1]  # under way already; a repetition harms nobody
        assert self.order.admit(chat_id, client_message_id) == may_go

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data(), fails=st.booleans())
    def end(self, data: st.DataObject, fails: bool) -> None:
        chat_id = data.draw(st.sampled_from([chat_id for chat_id, sends in self.model.items() if sends]))
        sends = self.model[chat_id]
        place = data.draw(st.integers(0, len(sends) - 1))
        client_message_id = sends[place][0]
        if fails:
            sends[place] = (client_message_id, False)
            self.order.fail(chat_id, client_message_id)
        else:
            del sends[place]
            self.order.settle(chat_id, client_message_id)

    @invariant()
    def count_is_exact(self) -> None:
        assert self.order.count == sum(map(len, self.model.values()))
        assert self.order._chats.keys() == {chat_id for chat_id, sends in self.model.items() if sends}


Sends.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSends = Sends.TestCase
