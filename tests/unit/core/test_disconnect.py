"""The table of disconnects is closed, and says the same on the wire, to programs and to people."""

import grpc
import pytest

from chatgrpc.core.disconnect import ENDINGS, Ended
from chatgrpc.v1 import session_pb2

CODES = [code for code in session_pb2.DisconnectCode.values() if code != session_pb2.DISCONNECT_CODE_UNSPECIFIED]


def test_every_code_has_an_ending_and_every_ending_a_code() -> None:
    assert sorted(ENDINGS) == sorted(CODES)


@pytest.mark.parametrize("code", CODES, ids=session_pb2.DisconnectCode.Name)
def test_the_range_says_what_to_do(code: session_pb2.DisconnectCode.ValueType) -> None:
    ending = ENDINGS[code]
    assert 100 <= code < 400
    assert (ending.reconnect_after_ms > 0) == (200 <= code < 300), "a delay stands where the range asks for one"


@pytest.mark.parametrize("code", CODES, ids=session_pb2.DisconnectCode.Name)
def test_the_status_is_one_of_grpc(code: session_pb2.DisconnectCode.ValueType) -> None:
    status, reason, message = Ended(code).status()
    assert (grpc.StatusCode[status] is grpc.StatusCode.OK) == (code == session_pb2.DISCONNECT_CODE_INPUT_ENDED)
    assert f"DISCONNECT_CODE_{reason}" == session_pb2.DisconnectCode.Name(code)
    assert message.endswith(".")


def test_what_is_more_precise_goes_before_the_table() -> None:
    ended = Ended(session_pb2.DISCONNECT_CODE_UNAUTHENTICATED, "The token expired. Get a new one.", "TOKEN_EXPIRED")
    assert ended.status() == ("UNAUTHENTICATED", "TOKEN_EXPIRED", "The token expired. Get a new one.")
    assert ended.frame().disconnect.message == "The token expired. Get a new one."


@pytest.mark.parametrize("code", CODES, ids=session_pb2.DisconnectCode.Name)
def test_the_last_frame_says_the_same(code: session_pb2.DisconnectCode.ValueType) -> None:
    ending = ENDINGS[code]
    disconnect = Ended(code).frame().disconnect
    assert (disconnect.code, disconnect.message, disconnect.reconnect_after_ms) == (
        code,
        ending.message,
        ending.reconnect_after_ms,
    )
