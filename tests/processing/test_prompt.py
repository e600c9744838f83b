"""Text to ids and labels, and what may not be cut."""

from __future__ import annotations

import pytest

from affectgpt.core.errors import DataError
from affectgpt.core.types import IGNORE_INDEX, Modality
from affectgpt.processing.prompt import encode_generation, encode_prompt, encode_training

PROMPT = "###Human: <Audio><AudioHere></Audio>. <Video><FaceHere></Video>. Say. ###Assistant: "
TOKENS = {Modality.AUDIO: 2, Modality.FACE: 3}


def ids_of(tokenizer, modality):
    return tokenizer.convert_tokens_to_ids(modality.placeholder)


def test_placeholders_are_repeated_before_tokenising(tokenizer):
    ids = encode_prompt(PROMPT, tokenizer=tokenizer, n_tokens=TOKENS, max_length=1000, sample="a")
    assert ids.count(ids_of(tokenizer, Modality.AUDIO)) == 2 and ids.count(ids_of(tokenizer, Modality.FACE)) == 3
    text = PROMPT.replace("<AudioHere>", "<AudioHere>" * 2).replace("<FaceHere>", "<FaceHere>" * 3)
    assert tokenizer.decode(ids) == text


def test_training_sequence(tokenizer):
    ids, labels = encode_training(PROMPT, "Glad.", tokenizer=tokenizer, n_tokens=TOKENS, max_length=200, sample="a")
    answer = [*tokenizer("Glad.###", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    assert ids[0] == tokenizer.bos_token_id and ids[-len(answer) :] == answer
    assert labels == [IGNORE_INDEX] * (len(ids) - len(answer)) + answer
    prompt = encode_prompt(PROMPT, tokenizer=tokenizer, n_tokens=TOKENS, max_length=200, sample="a")
    assert ids[1 : -len(answer)] == prompt  # the same prompt as in generation
    assert encode_generation(PROMPT, tokenizer=tokenizer, n_tokens=TOKENS, sample="a") == prompt


def test_bos_and_eos_do_not_count(tokenizer):
    prompt = encode_prompt(PROMPT, tokenizer=tokenizer, n_tokens=TOKENS, max_length=1000, sample="a")
    exact = len(prompt) + len("Glad.###")
    encode_training(PROMPT, "Glad.", tokenizer=tokenizer, n_tokens=TOKENS, max_length=exact, sample="a")
    with pytest.raises(DataError, match=rf"sample 'clip': .* are {exact} tokens, model.max_length is {exact - 1}"):
        encode_training(PROMPT, "Glad.", tokenizer=tokenizer, n_tokens=TOKENS, max_length=exact - 1, sample="clip")


def test_a_cut_may_take_text_but_no_placeholder(tokenizer):
    assert len(encode_prompt(PROMPT, tokenizer=tokenizer, n_tokens=TOKENS, max_length=60, sample="a")) == 60
    with pytest.raises(DataError, match=r"'clip': .* removes 3 of its <FaceHere>.* raise model\.max_length, which is"):
        encode_prompt(PROMPT, tokenizer=tokenizer, n_tokens=TOKENS, max_length=30, sample="clip")


def test_generation_is_cut_on_the_right_then_on_the_left(tokenizer):
    long = "a" * 30 + "<AudioHere>" + "b" * 30 + "c" * 40
    ids = encode_generation(
        long, tokenizer=tokenizer, n_tokens={}, sample="clip", max_length=80, max_new_tokens=20
    )  # the first 80 tokens, of these the last 60
    assert tokenizer.decode(ids) == "a" * 10 + "<AudioHere>" + "b" * 30 + "c" * 19
    with pytest.raises(DataError, match=r"'clip': .* removes 1 of its <AudioHere>.* lower inference\.max_new_tokens"):
        encode_generation(long, tokenizer=tokenizer, n_tokens={}, sample="clip", max_length=80, max_new_tokens=50)
    with pytest.raises(DataError, match="leaves no room"):
        encode_generation(long, tokenizer=tokenizer, n_tokens={}, sample="clip", max_length=80, max_new_tokens=80)
