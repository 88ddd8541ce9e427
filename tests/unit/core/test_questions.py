"""Questions: asked until answered, and answered only by what was said after the asking."""

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.questions import Questions


def test_whoever_waits_is_called_back_once() -> None:
    questions: Questions[int] = Questions(again_after_ms=100)
    heard: list[int] = []
    number = questions.ask("c", heard.append, 0)
    assert len(questions) == 1
    questions.answered("d", number, 9)
    questions.answered("c", number, 5)
    questions.answered("c", number, 6)
    assert heard == [5]
    assert len(questions) == 0


def test_an_answer_to_an_earlier_question_is_none_to_a_later_one() -> None:
    questions: Questions[int] = Questions(again_after_ms=100)
    first: list[int] = []
    second: list[int] = []
    early = questions.ask("c", first.append, 0)
    late = questions.ask("c", second.append, 10)
    questions.answered("c", early, 5)
    assert (first, second) == ([5], [])
    assert len(questions) == 1
    questions.answered("c", late, 6)
    assert (first, second) == ([5], [6])


def test_one_answer_does_for_all_who_asked_before_its_question() -> None:
    questions: Questions[int] = Questions(again_after_ms=100)
    heard: list[int] = []
    also_heard: list[int] = []
    questions.ask("c", heard.append, 0)
    number = questions.ask("c", also_heard.append, 0)
    questions.answered("c", number, 5)
    assert heard == also_heard == [5]


def test_who_asks_again_and_again_waits_once_and_hears_of_the_first_and_of_the_last() -> None:
    questions: Questions[int] = Questions(again_after_ms=100)
    heard: list[int] = []
    first, *_, last = [questions.ask("c", heard.append, 0) for _ in range(100)]
    questions.answered("c", first, 5)
    questions.answered("c", last - 1, 6)
    assert heard == [5], "nobody knows yet what is the case after the last asking"
    questions.answered("c", last, 7)
    questions.answered("c", last, 8)
    assert heard == [5, 7]
    assert len(questions) == 0


def test_a_question_without_an_answer_is_asked_again_under_a_new_number() -> None:
    questions: Questions[int] = Questions(again_after_ms=100)
    heard: list[int] = []
    first = questions.ask("c", heard.append, 0)
    questions.ask("d", heard.append, 50)
    assert list(questions.due(99)) == []
    ((chat_id, again),) = questions.due(100)
    assert chat_id == "c"
    assert again > first
    assert [chat_id for chat_id, _ in questions.due(150)] == ["d"]
    assert list(questions.due(299)) == [], "twice as late each time"
    assert [chat_id for chat_id, _ in questions.due(300)] == ["c"]
    questions.answered("c", first, 5)
    assert heard == [5], "the answer to the first one came late, and does: it was asked after the asking"
    assert [chat_id for chat_id, _ in questions.due(350)] == ["d"]


def test_what_is_withdrawn_is_neither_answered_nor_asked_again() -> None:
    questions: Questions[int] = Questions(again_after_ms=100)
    heard: list[int] = []
    unheard: list[int] = []
    gone = unheard.append
    questions.ask("c", gone, 0)
    questions.ask("d", gone, 0)
    number = questions.ask("c", heard.append, 10)
    questions.withdraw("c", gone)
    questions.withdraw("d", gone)
    questions.withdraw("e", gone)
    assert len(questions) == 1
    assert [chat_id for chat_id, _ in questions.due(1_000)] == ["c"]
    questions.answered("c", number, 5)
    questions.answered("d", number, 5)
    assert (heard, unheard) == ([5], [])


def test_a_new_owner_is_asked_at_once_about_its_chats() -> None:
    questions: Questions[int] = Questions(again_after_ms=100)
    questions.ask("c", lambda answer: None, 0)
    questions.ask("d", lambda answer: None, 0)
    assert [chat_id for chat_id, _ in questions.again(lambda chat_id: chat_id == "d", 40)] == ["d"]
    assert [chat_id for chat_id, _ in questions.due(100)] == ["c"]
    assert [chat_id for chat_id, _ in questions.due(140)] == ["d"]


def test_who_is_called_back_may_ask_again() -> None:
    questions: Questions[int] = Questions(again_after_ms=100)
    heard: list[int] = []

    def ask_again(answer: int) -> None:
        heard.append(answer)
        questions.ask("c", heard.append, 10)

    number = questions.ask("c", ask_again, 0)
    questions.answered("c", number, 5)
    assert heard == [5]
    assert len(questions) == 1
    ((_, number),) = questions.due(110)
    questions.answered("c", number, 6)
    assert heard == [5, 6]


@given(st.lists(st.tuples(st.sampled_from(["ask", "answer", "due", "move"]), st.sampled_from("cd"), st.integers(0, 30))))
def test_what_is_heard_was_true_after_the_asking(turns: list[tuple[str, str, int]]) -> None:
    """The truth rises with time; each question is answered by the truth of when it was sent, or never, in any order."""
    questions: Questions[int] = Questions(again_after_ms=5)
    now_ms = 0
    sent: list[tuple[str, int, int]] = []
    asked = heard = 0

    def ask(chat_id: str) -> None:
        nonlocal asked
        asked += 1
        asked_at_ms = now_ms

        def hear(answer: int) -> None:
            nonlocal heard
            heard += 1
            assert answer >= asked_at_ms

        sent.append((chat_id, questions.ask(chat_id, hear, now_ms), now_ms))

    for kind, chat_id, number in turns:
        now_ms += 1
        match kind:
            case "ask":
                ask(chat_id)
            case "answer" if sent:
                of_chat, of_number, truth = sent[number % len(sent)]
                questions.answered(of_chat, of_number, truth)
            case "due":
                sent += [(of_chat, again, now_ms) for of_chat, again in questions.due(now_ms)]
            case "move":
                concerned = questions.again(lambda of_chat: of_chat == chat_id, now_ms)  # noqa: B023  called at once
                sent += [(of_chat, again, now_ms) for of_chat, again in concerned]
    for of_chat, again in list(questions.due(now_ms + 100)):
        questions.answered(of_chat, again, now_ms + 100)
    assert heard == asked
    assert len(questions) == 0
