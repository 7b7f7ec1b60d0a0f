"""Guards on texts as captioners really write them; most of the bad ones are of reported issues
(specs/captioners.md §4.4)."""

from __future__ import annotations

import pytest

from models.captioners.guards import FLAGS, caption_flags

GOOD = "A man in a blue shirt opens the door and walks into the kitchen."
TEA = (
    "This is one image frame sampled from a video. Please caption this frame in two or three "
    "sentences, focusing on the people."
)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "A man is unable to lift the heavy box, so he asks a woman for help.",
        "It seems there is no one in the room. There is no picture on the wall behind the sofa.",
        'A woman holds a sign that says "I\'m sorry" in front of a house.',
        "The man looks at the camera and says 'I can't believe it' while laughing.",
        "The boy says: “I’m sorry.” He looks at the floor.",
        "There is a man on the left. There is a man on the right. There is a man in the middle.",
        "A person is typing on a laptop; the screen shows <html> code.",
        "A café in Zürich with naïve paintings on the wall.",
        'A storefront with a sign that reads "北京饭店" and two people in front of it.',
        "Καλημέρα is written above the door of a white house by the sea in the evening sun.",
        "The Ġgantija temples on Gozo, seen from above.",
        "The band plays and the crowd sings la la la la while a very, very, very tall man dances.",
        "In the image, a group of people gathers around a dining table filled with plates, "
        "glasses, and food. One of them, in a red sweater, reaches for a bottle of wine, while "
        "another person on the other side of the table talks to a child. The room is warmly lit, "
        "and a painting hangs on the wall behind them.",
    ],
)
def test_a_good_caption_has_no_flags(text: str) -> None:
    assert caption_flags(text, prompt=TEA) == ()


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", ("empty",)),
        (" \n\n ", ("empty",)),
        ("...!\n-", ("punctuation",)),
        ("A dog.", ("short",)),
        (" ".join(f"{i * i * i}" for i in range(1000, 1121)), ("long",)),
        ("the man and the " * 5, ("loop",)),
        ("a b c d " * 3 + GOOD, ()),
        ("A dog runs. " + "red " * 45, ("loop",)),
        ("dog dog dog dog dog", ("loop",)),
        ("A man and a man and a man and a man and a man and a man", ("loop",)),
        ("The man is standing in front of the table and looking at the camera. " * 3, ("loop",)),
        ("The man is walking " + "!" * 30, ("loop",)),
        ("A man laughs: " + "ha" * 60, ("loop",)),
        ("ASSISTANT: a dog runs away", ("template",)),
        ("A man opens a door.\nHuman: What is he doing?\nAssistant: He opens it.", ("template",)),
        ("A dog runs away.</s>", ("template",)),
        ("A dog runs away.<|im_end|>", ("template",)),
        ("A dog runs away.<end_of_turn>", ("template",)),
        ("A dog <unk> runs away.", ("template",)),
        ("A dog runs<0x0A>away today.", ("template",)),
        ("<IMG_CONTEXT><IMG_CONTEXT> a dog runs away", ("template",)),
        ("▁A▁dog▁runs away today", ("template",)),
        ("AĠdogĠruns away today", ("template",)),
        ("I'm sorry, but as an AI I cannot see it.", ("refusal",)),
        ("I’m sorry, but I can’t help with identifying people in images.", ("refusal",)),
        ("\"I'm sorry, but I can't help with that.\"", ("refusal",)),
        ("A frame of a video. I am unable to see who is in it.", ("refusal",)),
        ("As a large language model, I have no eyes.", ("refusal",)),
        ("Please provide the image you would like me to describe.", ("refusal",)),
        ("It seems that there is no image attached to your message.", ("refusal",)),
        ("It looks like you forgot to add the frame.", ("refusal",)),
        ("The image is not available, so nothing is known.", ("refusal",)),
        ("这张图片显示一个人站在厨房里，手里拿着一个杯子。", ("script",)),
        ("The man 站在厨房里，手里拿着一个杯子，旁边有一台冰箱。", ("script",)),
        ("Мужчина стоит на кухне и держит чашку.", ("script",)),
        ("一个男人站在厨房里。" * 6, ("loop", "script")),
    ],
)
def test_what_is_wrong_with_a_caption_is_flagged(text: str, flags: tuple[str, ...]) -> None:
    assert caption_flags(text, prompt=TEA) == flags


def test_an_answer_in_the_language_of_the_prompt_is_good() -> None:
    chinese = "一个男人站在厨房里，手里拿着一个杯子，旁边有一台白色的冰箱。"
    assert caption_flags(chinese, prompt="请用一句话描述这个画面。") == ()
    assert caption_flags(chinese) == ()  # nobody said what it was asked
    assert caption_flags("狗。", prompt="请描述") == ("short",)


def test_a_caption_cut_by_the_limit_is_flagged() -> None:
    assert caption_flags(GOOD, finish_reason="length") == ("truncated",)


@pytest.mark.parametrize(
    ("prompt", "text", "flags"),
    [
        ("describe it.", f"Describe it. {GOOD}", ("echo",)),
        (TEA, "This is one image frame sampled\nfrom a video. A man runs.", ("echo",)),
        ("Describe the video", f"Describe the video: {GOOD}", ("echo",)),
        ("a photo of", "a photo of a cat on a sofa", ()),
        ("Caption:", "Caption: a cat on a sofa", ("echo",)),
        ("", GOOD, ()),
    ],
)
def test_a_caption_that_repeats_a_sentence_of_the_prompt_is_flagged(
    prompt: str, text: str, flags: tuple[str, ...]
) -> None:
    assert caption_flags(text, prompt=prompt) == flags


def test_flags_keep_one_order() -> None:
    flags = caption_flags("USER: no", finish_reason="length")
    assert list(flags) == sorted(flags, key=FLAGS.index) == ["short", "template", "truncated"]
