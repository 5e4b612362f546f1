"""DeepLIFT of 2016: closed forms of saturation, normalisations that keep the function, simulated DNA that is what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.explain import deeplift, gradient, input_x_gradient
from assay.lab import Lab
from assay.papers.explain import deeplift2016 as module
from assay.papers.explain.deeplift2016 import differences, motif_sequences, normalise_letters, normalise_logits
from assay.view import View


class Formula(nn.Module):
    def __init__(self, formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(*x.split(1, dim=1))


CASES = {
    # A score that has had enough: y = min(a + b, 1) = 1 - relu(1 - a - b). Both inputs share the 1; the gradient is 0.
    "saturated": (lambda a, b: 1 - (1 - a - b).relu(), (1.0, 2.0), (0.0, 0.0), (1 / 3, 2 / 3), (0.0, 0.0)),
    # A threshold: y = relu(a - 10). At 15 the gradient claims 15, of which there are only 5.
    "threshold": (lambda a, b: (a - 10).relu() + 0 * b, (15.0, 1.0), (0.0, 0.0), (5.0, 0.0), (15.0, 0.0)),
    # A product from (1, 2) to (3, 5): 13 more; each takes its own part and half of the mixed one.
    "product": (lambda a, b: a * b, (3.0, 5.0), (1.0, 2.0), (2 * 2 + 3.0, 3 * 1 + 3.0), (15.0, 15.0)),
    # A maximum: a wins now and gets what is above the reference's winner; b won there and answers for the rest.
    "maximum rises": (lambda a, b: torch.cat([a, b], 1).amax(1, keepdim=True), (5.0, 1.0), (0.0, 3.0), (2.0, 0.0), (5.0, 0.0)),
    "maximum falls": (lambda a, b: torch.cat([a, b], 1).amax(1, keepdim=True), (2.0, 1.0), (0.0, 3.0), (0.0, -1.0), (2.0, 0.0)),
    "tanh": (lambda a, b: (a + b).tanh(), (10.0, 10.0), (0.0, 0.0), (0.5, 0.5), (0.0, 0.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_closed_forms(case):
    formula, at, start, expected, product = CASES[case]
    inputs, baseline = torch.tensor([at]), torch.tensor([start])
    found = deeplift(Formula(formula), inputs, 0, baseline=baseline)
    torch.testing.assert_close(found, torch.tensor([expected]), rtol=0, atol=1e-6)
    torch.testing.assert_close(input_x_gradient(Formula(formula), inputs, 0), torch.tensor([product]), rtol=0, atol=1e-5)


def test_contributions_are_multipliers_in_a_chain():
    """m of the whole = m of the second part times m of the first, for one unit in between (the chain rule of multipliers)."""
    first, second = Formula(lambda a: (2 * a - 1).relu()), Formula(lambda a: (3 * a).tanh())
    inputs, start = torch.tensor([[1.5]]), torch.tensor([[0.2]])
    middle, middle_start = first(inputs), first(start)
    whole = deeplift(nn.Sequential(first, second), inputs, 0, baseline=start) / (inputs - start)
    one = deeplift(first, inputs, 0, baseline=start) / (inputs - start)
    other = deeplift(second, middle, 0, baseline=middle_start) / (middle - middle_start)
    torch.testing.assert_close(whole, one * other)


def test_normalised_logits_have_the_same_softmax_and_sum_to_nothing():
    torch.manual_seed(0)
    head, inputs = nn.Linear(6, 4), torch.randn(5, 6)
    before = head.weight.clone()
    centred = normalise_logits(head)
    torch.testing.assert_close(centred(inputs).softmax(1), head(inputs).softmax(1))
    scores = torch.stack([deeplift(centred, inputs, target) for target in range(4)])
    torch.testing.assert_close(scores.sum(dim=0), torch.zeros(5, 6), rtol=0, atol=1e-6)
    assert torch.equal(head.weight, before)


def test_normalised_letters_give_the_same_outputs():
    torch.manual_seed(0)
    letters = nn.functional.one_hot(torch.randint(4, (3, 30)), 4).transpose(1, 2).float()
    for bias in (True, False):
        first = nn.Conv1d(4, 8, 5, bias=bias, stride=2)
        centred = normalise_letters(first)
        torch.testing.assert_close(centred(letters), first(letters))
        torch.testing.assert_close(centred.weight.sum(dim=1), torch.zeros(8, 5), rtol=0, atol=1e-6)
    # The gradient of letters that sums to nothing: which letter stands there is all that counts.
    summed = gradient(nn.Sequential(centred, nn.Flatten()), letters, 0).sum(dim=1)
    torch.testing.assert_close(summed, torch.zeros(3, 30), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="without padding"):
        normalise_letters(nn.Conv1d(4, 8, 5, padding=2))


def test_simulated_sequences_hold_what_they_say():
    inputs, labels, places = motif_sequences(400, torch.Generator().manual_seed(0))
    assert inputs.shape == (400, 4, 120)
    assert (inputs.sum(dim=1) == 1).all()
    assert torch.equal(labels[:, 2], labels[:, 0] * labels[:, 1])
    assert not (places[:, 0] & places[:, 1]).any()
    texts = ["".join("ACGT"[i] for i in row) for row in inputs.argmax(dim=1).tolist()]
    for which, allowed in ((0, {"AGATAA", "TGATAA", "AGATAG", "TGATAG"}), (1, {"CAGATG"})):
        assert torch.equal(places[:, which].any(dim=1), labels[:, which].bool())
        copies = places[:, which].sum(dim=1) // 6
        assert set(copies.tolist()) == {0, 1, 2, 3, 4}
        for text, row in zip(texts, places[:, which], strict=True):
            held = "".join(letter for letter, inside in zip(text, row.tolist(), strict=True) if inside)
            assert {held[i : i + 6] for i in range(0, len(held), 6)} <= allowed
    assert inputs.mean(dim=(0, 2))[0] == pytest.approx(0.31, abs=0.02)


def test_probe_shows_contributions_and_says_what_they_miss():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs = torch.randn(5, 4)
    view = View(network, inputs, network(inputs).argmax(1), None, inputs[:0], None, "table", ("a", "b", "c"))
    seen = differences(view)
    assert seen.attributions["DeepLIFT"].shape == inputs.shape
    torch.testing.assert_close(seen.attributions["DeepLIFT"].sum(1), seen.each["score above the reference's"])
    assert seen.each["missing in the sum"].abs().max() < 1e-5
    assert not seen.notes


def test_claims_run(home):
    lab = Lab(scale="smoke")
    for measure in (module.credit_through_saturation, module.sums_to_delta, module.lrp_is_gradient_x_input):
        assert all(float(getattr(value, "number", value)) >= 0 for value in measure(lab).values())
