"""What sessions need read from the log: pages for lagging devices, pages of history, memberships."""

from chatgrpc.core.event_feed import FeedRead, LoadChat, ReadMembership
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import chat_damaged, page_unavailable
from chatgrpc.core.session import Session
from chatgrpc.edge.history import Side, read_page
from chatgrpc.ports.chat_log import ChatReader
from chatgrpc.ports.errors import ChatDamagedError, StoreError, StoreUnavailableError
from chatgrpc.trouble import Trouble
from chatgrpc.v1 import chat_pb2, session_pb2


class SessionReader:
    """Reads for sessions, and hands them what it read."""

    def __init__(self, log: ChatReader, limits: Limits) -> None:
        self._chat_log = log
        self._limits = limits
        self._history_fails = Trouble("history_failed")

    async def feed(self, session: Session, wanted: FeedRead) -> None:
        """Reads what the session's feed wants.

        Raises:
            StoreError: it cannot be read.
        """
        if isinstance(wanted, LoadChat):
            stored = await self._chat_log.load(wanted.chat_id)
            if stored is None:
                raise StoreUnavailableError(f"chat {wanted.chat_id} has members and no events")
            session.chat_loaded(stored)
            return
        if isinstance(wanted, ReadMembership):
            session.membership_read(wanted.chat_id, await self._chat_log.membership(session.user_id, wanted.chat_id))
            return
        events = await self._chat_log.read_after(
            wanted.chat_id, wanted.after_seq, wanted.up_to_seq, wanted.limit, wanted.bytes_max
        )
        session.log_read(events)

    async def page(self, session: Session, request_id: int, request: session_pb2.FetchHistory) -> None:
        """Reads a page of history, as the session's user may see it, and hands it to the session."""
        try:
            membership = await self._chat_log.membership(session.user_id, request.chat_id)
            if membership is None:
                not_a_member = "There is no such chat, or you were never a member. Look at ChatService.ListChats."
                session.page_read(request_id, chat_pb2.Error(code=chat_pb2.ERROR_CODE_NOT_A_MEMBER, message=not_a_member))
                return
            side, seq = _where(request, membership.head_seq)
            page = await read_page(self._chat_log, membership, side, seq, limit=request.limit, limits=self._limits)
        except StoreError as error:
            self._history_fails.failed(error)
            session.page_read(request_id, chat_damaged() if isinstance(error, ChatDamagedError) else page_unavailable())
            return
        self._history_fails.worked()
        frame = session_pb2.HistoryPage(chat_id=request.chat_id, more_before=page.more_before, more_after=page.more_after)
        session.page_read(request_id, frame, page.events)


def _where(request: session_pb2.FetchHistory, head_seq: int) -> tuple[Side, int]:
    match request.WhichOneof("from"):
        case "before_seq":
            return "before", request.before_seq
        case "after_seq":
            return "after", request.after_seq
        case "around_seq":
            return "around", request.around_seq
    return "before", head_seq + 1
