"""Page tokens: what was issued is redeemed, and nothing else is."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chatgrpc.core.refusal import RefusedError
from chatgrpc.edge.services.page_tokens import issue_page_token, redeem_page_token, redeem_seq_token
from chatgrpc.v1 import chat_pb2

positions = st.text(max_size=40).filter(lambda text: "\0" not in text)


@given(positions, st.lists(positions, max_size=3))
def test_redeems_what_was_issued(position: str, belongs_to: list[str]) -> None:
    assert redeem_page_token(issue_page_token(position, *belongs_to), *belongs_to) == position


@given(st.integers(0, 2**64 - 1), st.data())
def test_a_changed_token_is_refused(seq: int, data: st.DataObject) -> None:
    token = issue_page_token(str(seq), "messages", "chat")
    changed_at = data.draw(st.integers(0, len(token) - 1))
    changed = token[:changed_at] + data.draw(st.characters(codec="ascii")) + token[changed_at + 1 :]
    assume(changed != token)
    with pytest.raises(RefusedError) as refused:
        redeem_seq_token(changed, "messages", "chat")
    assert refused.value.error.code == chat_pb2.ERROR_CODE_INVALID_ARGUMENT


@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        redeem_seq_token(text, "messages", "chat")


@pytest.mark.parametrize("elsewhere", [("messages", "other"), ("chats", "chat"), ("messages",), ("messages", "chat", "1")])
def test_a_token_of_another_list_is_refused(elsewhere: tuple[str, ...]) -> None:
    with pytest.raises(RefusedError):
        redeem_seq_token(issue_page_token("7", "messages", "chat"), *elsewhere)


@pytest.mark.parametrize("position", ["", "seven", "7" * 5_000])
def test_a_forged_position_that_is_no_seq_is_refused(position: str) -> None:
    """The digest is no secret, so anyone can compute it for a position that no list gives out."""
    with pytest.raises(RefusedError):
        redeem_seq_token(issue_page_token(position, "messages", "chat"), "messages", "chat")
