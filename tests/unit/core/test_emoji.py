"""One emoji, and what is none."""

import pytest

from chatgrpc.core.emoji import is_emoji


@pytest.mark.parametrize(
    "emoji",
    ["👍", "👍🏽", "❤", "❤️", "☺️", "©️", "🇦🇹", "1️⃣", "#⃣", "👩‍👩‍👧‍👦", "👩🏽‍⚕️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏳️‍🌈", "🫩", "\U0001fc00"],
    ids=ascii,
)
def test_one_emoji(emoji: str) -> None:
    assert is_emoji(emoji)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "notanemoji",
        "x",
        "+",
        "1",
        "#",
        "👍👍",
        "😀🎉",
        "👍 ",
        " 👍",
        "👍\n",
        "🇦",
        "🇦🇹🇩",
        "\u200d",
        "👍\u200d",
        "\u202e",
        "\ufe0f",
        ":)",
        "é",
        "👍x",
    ],
    ids=ascii,
)
def test_no_emoji(text: str) -> None:
    assert not is_emoji(text)
