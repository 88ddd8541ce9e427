"""What of a content is checked without its chat: every number that a peer can send is bounded, found by the descriptors."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import FieldDescriptor

from chatgrpc.core.ids import self_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.rules import Circumstances, complete
from chatgrpc.core.shape import SEQ_MAX, TIME_MS_MAX, check_picture_url, check_shape
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2

LIMITS = Limits()
CHAT_ID = self_chat_id("alice")
SOUND = {
    "text": content_pb2.Content(text=content_pb2.TextContent(text="hi")),
    "reaction": content_pb2.Content(reaction=content_pb2.ReactionContent(target_seq=1, emoji="👍")),
    "edit": content_pb2.Content(edit=content_pb2.EditContent(target_seq=1, text="hi")),
    "delete": content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=1)),
    "encrypted": content_pb2.Content(encrypted=content_pb2.EncryptedContent(scheme="s")),
    "hide": content_pb2.Content(hide=content_pb2.HideContent(chat_id=CHAT_ID, seqs=[1])),
    "chat_settings": content_pb2.Content(chat_settings=content_pb2.ChatSettingsContent(chat_id=CHAT_ID, muted_until_ms=1)),
    "member_muted": content_pb2.Content(member_muted=content_pb2.MemberMutedContent(user_id="bob", muted_until_ms=1)),
}
"""The arms that bring numbers or words of their sender."""
_WIDEST = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), -1, 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (2**32 - 1,),
    FieldDescriptor.CPPTYPE_UINT64: (2**63 - 1, 2**63, 2**64 - 1),
}


_JUDGED_BY_THE_LOG = {"reply_to_seq", "reaction.target_seq", "edit.target_seq", "delete.target_seq"}
"""What refers to an event of the same chat: it is there, or it is not."""


def _numbers() -> Iterator[tuple[str, str, int]]:
    """(arm, field of the arm or of the content itself, a number at the end of its type)."""
    fields = content_pb2.Content.DESCRIPTOR.fields_by_name
    for arm in SOUND:
        body = fields[arm].message_type
        assert body is not None
        of_arm = [(f"{arm}.{field.name}", field) for field in body.fields]
        of_content = [(field.name, field) for field in fields.values() if field.message_type is None]
        for path, field in of_arm + of_content:
            for number in _WIDEST.get(field.cpp_type, ()):
                yield arm, path, number


def _shape(content: content_pb2.Content) -> str:
    try:
        check_shape(content, LIMITS)
    except RefusedError as refused:
        return chat_pb2.ErrorCode.Name(refused.error.code).removeprefix("ERROR_CODE_")
    return "OK"


def _in_a_chat(content: content_pb2.Content) -> str:
    member = content_pb2.Member(user_id="alice", role=content_pb2.MEMBER_ROLE_MEMBER, joined_seq=1)
    chat = chat_pb2.Chat(chat_id="g.x", kind=content_pb2.CHAT_KIND_GROUP, members=[member])
    if content.WhichOneof("body") in {"hide", "chat_settings"}:
        chat.kind = content_pb2.CHAT_KIND_SELF
    if content.WhichOneof("body") == "member_muted":
        member.role = content_pb2.MEMBER_ROLE_ADMIN
    write = Write("g.x", "alice", content, bytes(16), None)
    try:
        complete(write, Circumstances(chat, member, 9, None, 0), LIMITS)
    except RefusedError as refused:
        return chat_pb2.ErrorCode.Name(refused.error.code).removeprefix("ERROR_CODE_")
    return "OK"


@pytest.mark.parametrize("arm", SOUND)
def test_the_sound_ones_are_taken(arm: str) -> None:
    assert _shape(SOUND[arm]) == "OK"


@pytest.mark.parametrize(("arm", "path", "number"), list(_numbers()))
def test_g7_every_number_of_a_peer_is_bounded(arm: str, path: str, number: int) -> None:
    content = content_pb2.Content()
    content.CopyFrom(SOUND[arm])
    *within, name = path.split(".")
    target = getattr(content, within[0]) if within else content
    if target.DESCRIPTOR.fields_by_name[name].is_repeated:
        getattr(target, name).append(number)
    else:
        setattr(target, name, number)
    if path in _JUDGED_BY_THE_LOG:
        assert _in_a_chat(content) == "TARGET_NOT_FOUND"
    else:
        assert _shape(content) == "INVALID_ARGUMENT"


def test_the_numbers_are_found() -> None:
    found = {path for _, path, _ in _numbers()}
    assert {
        "hide.seqs",
        "member_muted.muted_until_ms",
        "chat_settings.muted_until_ms",
        "forward_count",
        "reply_to_seq",
    } <= found


def test_the_ends_of_the_bounds() -> None:
    edges = (
        (content_pb2.Content(text=content_pb2.TextContent(text="x"), forward_count=LIMITS.forward_count_max), "OK"),
        (content_pb2.Content(text=content_pb2.TextContent(text="x"), reply_to_seq=SEQ_MAX), "OK"),
        (content_pb2.Content(chat_settings=content_pb2.ChatSettingsContent(chat_id=CHAT_ID, muted_until_ms=TIME_MS_MAX)), "OK"),
        (content_pb2.Content(encrypted=content_pb2.EncryptedContent(scheme="s" * 64)), "OK"),
        (content_pb2.Content(encrypted=content_pb2.EncryptedContent(scheme="s" * 65)), "TOO_LARGE"),
    )
    assert [_shape(content) for content, _ in edges] == [expected for _, expected in edges]


@pytest.mark.parametrize(
    "url", ["", "https://p.example/a.png?x=1#f", "https://user@[::1]:8443/a", "https://xn--9ca.example/%C3%A9"]
)
def test_pictures_are_https(url: str) -> None:
    check_picture_url(url, LIMITS)


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "http://p.example/a",
        "HTTPS://p.example/a",
        "data:image/png;base64,x",
        "file:///etc/passwd",
        "//p.example",
        "https://",
        "https:///a",
        "https://p.example/a b",
        "https://p.example/\n",
        "https://p.example/é",
        'https://p.example/"><script>',
        " https://p.example/",
        "https://p.example/\u202e",
        "https://\\p.example",
    ],
    ids=ascii,
)
def test_other_schemes_and_characters_are_not(url: str) -> None:
    with pytest.raises(RefusedError) as refused:
        check_picture_url(url, LIMITS)
    assert refused.value.error.code == chat_pb2.ERROR_CODE_INVALID_ARGUMENT
