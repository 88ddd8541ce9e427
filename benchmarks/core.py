"""The core alone: how many messages a second it takes from a device's frame to the frames of the receivers' devices.

`python -m benchmarks.core` prints what each step of a message's way costs; no transport, no store, no event loop. A tick of the
edge is played with everything in it that the core does: frames are received, writes submitted, the group committed, answers
and events put out, acknowledgements taken.
"""

import argparse
import cProfile
import pstats
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from chatgrpc.core.active_chat import Ticket
from chatgrpc.core.clock import Now
from chatgrpc.core.effects import Admission, Submit
from chatgrpc.core.entries import Membership, StoredChat
from chatgrpc.core.ids import direct_chat_id, group_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.sequencer import Sequencer
from chatgrpc.core.session import Session, Timings
from chatgrpc.core.visibility import Interval
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

NOW_MS = 1_800_000_000_000
_NOW = Now(NOW_MS, NOW_MS)
TEXT = "See you at the station at half past seven, and bring the tickets!"
ROUNDS = 5


@dataclass
class Scene:
    """Users with one device each, in chats that exist, and who sends where."""

    limits: Limits = field(default_factory=Limits)
    sessions: dict[str, Session] = field(default_factory=dict)
    senders: list[tuple[str, str]] = field(default_factory=list)
    """User id and chat id, once for each message of a tick."""
    members: dict[str, list[str]] = field(default_factory=dict)

    def add_chat(self, chat_id: str, kind: content_pb2.ChatKind.ValueType, user_ids: list[str]) -> StoredChat:
        self.members[chat_id] = user_ids
        chat = chat_pb2.Chat(chat_id=chat_id, kind=kind, as_of_seq=1)
        for user_id in user_ids:
            chat.members.add(user_id=user_id, role=content_pb2.MEMBER_ROLE_MEMBER, joined_seq=1)
        event = chat_pb2.ChatEvent(chat_id=chat_id, seq=1, sender_user_id=user_ids[0], client_message_id=bytes(16))
        return StoredChat(chat.SerializeToString(), 1, event.SerializeToString())

    def open_sessions(self) -> None:
        chats: dict[str, list[str]] = {}
        for chat_id, user_ids in self.members.items():
            for user_id in user_ids:
                chats.setdefault(user_id, []).append(chat_id)
        for user_id, chat_ids in chats.items():
            session = self.sessions[user_id] = Session(user_id, "token", self.limits, Timings(), NOW_MS)
            positions = [session_pb2.ChatPosition(chat_id=chat_id, seq=1) for chat_id in chat_ids]
            hello = session_pb2.Hello(device_id="device", positions=positions)
            session.receive(session_pb2.ClientFrame(request_id=1, hello=hello), NOW_MS)
            memberships = [Membership(chat_id, (Interval(1),), 1) for chat_id in chat_ids]
            session.admitted(Admission(user_id, NOW_MS + 10**9, memberships, {}, [], "sync"), Now(NOW_MS, NOW_MS))
            session.take_output(NOW_MS)


def pairs(count: int, window: int) -> tuple[Scene, dict[str, StoredChat]]:
    """`count` pairs of users, of whom one sends `window` messages a tick to the other."""
    scene, stored = Scene(), {}
    for number in range(count):
        users = [f"a{number}", f"b{number}"]
        chat_id = direct_chat_id(*users)
        stored[chat_id] = scene.add_chat(chat_id, content_pb2.CHAT_KIND_DIRECT, users)
        scene.senders += [(users[0], chat_id)] * window
    scene.open_sessions()
    return scene, stored


def groups(count: int, members: int, window: int) -> tuple[Scene, dict[str, StoredChat]]:
    """`count` groups with `members` members each, of whom one sends `window` messages a tick."""
    scene, stored = Scene(), {}
    for number in range(count):
        users = [f"u{number}-{member}" for member in range(members)]
        chat_id = group_chat_id(users[0], bytes(16))
        stored[chat_id] = scene.add_chat(chat_id, content_pb2.CHAT_KIND_GROUP, users)
        scene.senders += [(users[0], chat_id)] * window
    scene.open_sessions()
    return scene, stored


class Ticks:
    """Plays ticks, and measures each step."""

    STEPS = ("receive", "submit", "commit", "answer", "deliver", "output", "acknowledge")

    def __init__(self, scene: Scene, stored: dict[str, StoredChat]) -> None:
        self._scene = scene
        self._sequencer = Sequencer(1, scene.limits, random.Random(1))
        for chat_id in stored:
            self._sequencer.activate(chat_id)
        for chat in self._sequencer.take_loads():
            self._sequencer.loaded(chat, stored[chat.chat_id], _NOW)
        self._number = 1
        self.seconds = dict.fromkeys(self.STEPS, 0.0)
        self.messages = 0
        self.deliveries = 0
        self.bytes_out = 0

    def _frames(self) -> list[tuple[str, session_pb2.ClientFrame]]:
        """What arrives in a tick, parsed; what a client spends on it is not ours."""
        frames = []
        for user_id, chat_id in self._scene.senders:
            self._number += 1
            key = chat_pb2.WriteKey(client_message_id=self._number.to_bytes(16), seen_seq=self._head_seq(chat_id))
            send = session_pb2.SendMessage(chat_id=chat_id, key=key)
            send.content.text.text = TEXT
            frame = session_pb2.ClientFrame(request_id=self._number, send=send)
            frames.append((user_id, session_pb2.ClientFrame.FromString(frame.SerializeToString())))
        return frames

    def _head_seq(self, chat_id: str) -> int:
        chat = self._sequencer.chat(chat_id)
        return chat.head_seq if chat is not None else 0

    def tick(self) -> None:
        """One tick of the edge, as far as the core takes part in it."""
        frames = self._frames()
        sessions = self._scene.sessions
        marks = [perf_counter()]
        writes: list[tuple[Session, Submit]] = []
        for user_id, frame in frames:
            session = sessions[user_id]
            effects = session.receive(frame, NOW_MS)
            writes += [(session, effect) for effect in effects if isinstance(effect, Submit)]
        marks.append(perf_counter())
        for session, submit in writes:
            ticket: Ticket = (session, submit.request_id, submit.write)
            self._sequencer.submit(ticket, submit.write, _NOW)
        marks.append(perf_counter())
        deliveries = []
        while group := self._sequencer.take_group():
            deliveries += self._sequencer.committed(group)
        answers = self._sequencer.take_answers()
        marks.append(perf_counter())
        for answer in answers:
            answered: tuple[Session, int, Write] = answer.ticket  # type: ignore[assignment]
            answered[0].answered(answered[1], answered[2], answer.outcome)
        marks.append(perf_counter())
        for delivery in deliveries:
            for user_id in delivery.recipients:
                last = user_id == delivery.left_user_id
                sessions[user_id].deliver(delivery.chat_id, delivery.seq, delivery.chunk, last)
        marks.append(perf_counter())
        for session in sessions.values():
            while message := session.take_output(NOW_MS):
                self.bytes_out += len(message)
        marks.append(perf_counter())
        acks = {delivery.chat_id: delivery.seq for delivery in deliveries}
        for chat_id, seq in acks.items():
            ack = session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=chat_id, seq=seq))
            for user_id in self._scene.members[chat_id]:
                sessions[user_id].receive(ack, NOW_MS)
        marks.append(perf_counter())
        for step, began, ended in zip(self.STEPS, marks, marks[1:], strict=False):
            self.seconds[step] += ended - began
        self.messages += len(answers)
        self.deliveries += sum(len(delivery.recipients) for delivery in deliveries)


SCENES: dict[str, Callable[[], tuple[Scene, dict[str, StoredChat]]]] = {
    "1:1, 50 pairs, window 1": lambda: pairs(50, 1),
    "1:1, 50 pairs, window 8": lambda: pairs(50, 8),
    "group, 4 x 100, window 2": lambda: groups(4, 100, 2),
    "group, 4 x 100, window 16": lambda: groups(4, 100, 16),
}


def measure(name: str, messages: int) -> Ticks:
    """Plays ticks until so many messages went through; the best of several rounds, since other load only ever adds."""
    best: Ticks | None = None
    for _ in range(ROUNDS):
        ticks = Ticks(*SCENES[name]())
        while ticks.messages < messages:
            ticks.tick()
        if best is None or sum(ticks.seconds.values()) / ticks.messages < sum(best.seconds.values()) / best.messages:
            best = ticks
    assert best is not None
    return best


def main() -> None:
    """Prints the table, or the profile of one scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000, help="messages a round (default: 10,000; a tenth for groups)")
    parser.add_argument("--profile", metavar="SCENE", choices=list(SCENES), help="profile one scene instead")
    arguments = parser.parse_args()
    if arguments.profile:
        profiler = cProfile.Profile()
        profiler.runcall(measure, arguments.profile, arguments.messages)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
        return
    print(f"{'scene':<28}{'messages/s':>12}{'deliveries/s':>14}   us per message, step by step")
    for name in SCENES:
        ticks = measure(name, arguments.messages // 10 if name.startswith("group") else arguments.messages)
        seconds = sum(ticks.seconds.values())
        steps = "  ".join(f"{step} {1e6 * took / ticks.messages:.1f}" for step, took in ticks.seconds.items())
        print(f"{name:<28}{ticks.messages / seconds:>12,.0f}{ticks.deliveries / seconds:>14,.0f}   {steps}")


if __name__ == "__main__":
    main()
