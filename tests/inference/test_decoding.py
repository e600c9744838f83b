"""Stop rules, sampling by row, and what of a generation is the answer."""

import pytest
import torch

from affectgpt.encoders.llm import StopSequences
from affectgpt.inference.sampling import SampleByRow, sample_seed
from affectgpt.processing.processor import clean_answer

EOS = ["<|im_end|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (" The character's emotional state is happy.###", "The character's emotional state is happy."),
        ("happy.###<|im_end|><|im_end|>", "happy."),
        ("happy<|endoftext|>###", "happy"),
        ("a ### b ### c", "a ### b"),
        ("###Human: x ###Assistant: sad###", "sad"),
        ("noise<|im_start|>happy<|im_start|>again", "happy"),
        ("", ""),
        ("##########", "#######"),  # as published: cut at the last ###
    ],
)
def test_clean_answer(raw, answer):
    assert clean_answer(raw, bos="<|im_start|>", eos_tokens=EOS) == answer


def test_stop_sequences_look_at_the_end_of_each_row_only():
    stop = StopSequences([(7,), (2, 3)])
    rows = torch.tensor([[7, 1, 1], [1, 1, 7], [1, 2, 3], [2, 3, 1], [1, 1, 1]])
    assert stop(rows).tolist() == [False, True, True, False, False]
    assert stop(torch.zeros((2, 0), dtype=torch.long)).tolist() == [False, False]
    assert stop(torch.tensor([[3]])).tolist() == [False]


def draws(seeds, logits, steps=400, **settings):
    options = {"max_new_tokens": steps, "top_k": 0, "top_p": 1.0, "temperature": 1.0, **settings}
    processor = SampleByRow(seeds, **options)
    empty = torch.zeros((len(seeds), 0), dtype=torch.long)
    return torch.stack([processor(empty, logits).argmax(dim=-1) for _ in range(steps)], dim=1)  # [B, steps]


def test_a_row_draws_the_same_alone_and_in_any_batch():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    alone = draws([11], logits)
    for seeds in ([11, 12, 13], [13, 11], [5, 6, 7, 8, 11]):
        together = draws(seeds, logits.expand(len(seeds), -1))
        assert torch.equal(together[seeds.index(11)], alone[0])
        assert not torch.equal(together[0], together[-1])


def test_sampling_follows_the_softmax():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    found = torch.bincount(draws([3], probabilities.log()[None], steps=20_000)[0], minlength=4) / 20_000
    assert torch.allclose(found, probabilities, atol=0.012)


def test_top_k_and_top_p_leave_what_they_should():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert set(draws([1], logits, top_k=2)[0].tolist()) == {0, 1}
    # smallest set that holds 0.6 of the mass: 0.5 does not, 0.5 + 0.3 does
    assert set(draws([1], logits, top_p=0.6)[0].tolist()) == {0, 1}
    assert set(draws([1], logits, top_p=0.01)[0].tolist()) == {0}
    both = draws([1], logits, top_p=0.9, top_k=3)[0]
    assert set(both.tolist()) == {0, 1, 2}


def test_seeds_depend_on_every_part():
    base = ("42", "MER2023", "sample_1", "question", "checkpoint")
    assert sample_seed(*base) == sample_seed(*base)
    changed = {sample_seed(*(p + "x" if i == j else p for i, p in enumerate(base))) for j in range(5)}
    assert len(changed | {sample_seed(*base)}) == 6
    assert all(0 <= seed < 2**63 for seed in changed)
