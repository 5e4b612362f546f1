"""Grokking: the tables are the operations that they claim to be, the transformer is causal, the curves are read rightly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from assay.papers.dynamics.grokking import (
    GrokTransformer,
    History,
    OperandMLP,
    OperationTable,
    delayed_generalization,
    grokking_delay,
    less_data_slower,
    run_grokking,
    weight_decay_helps,
)


def square(table: OperationTable) -> torch.Tensor:
    """The table as a matrix: answer of row x, column y."""
    matrix = torch.full((table.elements, table.elements), -1)
    matrix[table.equations[:, 1], table.equations[:, 3]] = table.answers
    return matrix


@pytest.mark.parametrize(
    ("op", "by_hand"),
    [
        ("x+y", lambda x, y: x + y),
        ("x-y", lambda x, y: x - y),
        ("x/y if y odd else x-y", lambda x, y: x * pow(y, -1, 7) if y % 2 else x - y),
        ("x^2+y^2", lambda x, y: x * x + y * y),
        ("x^2+xy+y^2", lambda x, y: x * x + x * y + y * y),
        ("x^2+xy+y^2+x", lambda x, y: x * x + x * y + y * y + x),
        ("x^3+xy", lambda x, y: x * x * x + x * y),
        ("x^3+xy^2+y", lambda x, y: x * x * x + x * y * y + y),
    ],
)
def test_modular_tables_are_complete_and_right(op, by_hand):
    table = OperationTable(op, p=7)
    rows = [(x, y, c) for (_, x, _, y, _), c in zip(table.equations.tolist(), table.answers.tolist(), strict=True)]
    assert sorted(rows) == sorted((x, y, by_hand(x, y) % 7) for x in range(7) for y in range(7))


def test_division_leaves_zero_out_and_undoes_multiplication():
    table = OperationTable("x/y", p=97)
    x, y = table.equations[:, 1], table.equations[:, 3]
    assert len(x) == 97 * 96
    assert (y > 0).all()
    assert torch.equal(table.answers * y % 97, x)


def test_permutations_form_a_group():
    product = square(OperationTable("xy"))
    assert product.numel() == 14_400
    everything = torch.arange(120)
    assert torch.equal(product.sort(0).values, everything[:, None].expand(120, 120))  # a Latin square
    assert torch.equal(product.sort(1).values, everything.expand(120, 120))
    a, b, c = torch.randint(120, (3, 500), generator=torch.Generator().manual_seed(0))
    assert torch.equal(product[product[a, b], c], product[a, product[b, c]])
    assert torch.equal(product[0], everything)  # the first permutation in lexical order is the identity
    inverse = (product == 0).long().argmax(1)
    assert torch.equal(square(OperationTable("xyx^-1"))[a, b], product[product[a, b], inverse[a]])
    assert torch.equal(square(OperationTable("xyx"))[a, b], product[product[a, b], a])
    # By hand, y first and then x: (1 0 2 3 4) after (0 1 2 4 3).
    names = list(itertools.permutations(range(5)))
    assert product[names.index((1, 0, 2, 3, 4)), names.index((1, 2, 3, 4, 0))] == names.index((0, 2, 3, 4, 1))


@pytest.mark.parametrize("op", ["x+y", "x^2+y^2", "x^2+xy+y^2"])
def test_commutative_operations_have_symmetric_tables(op):
    assert torch.equal(square(OperationTable(op, p=11)), square(OperationTable(op, p=11)).T)
    assert not torch.equal(square(OperationTable("x-y", p=11)), square(OperationTable("x-y", p=11)).T)


def test_the_split_is_disjoint_covering_and_the_seeds_own():
    table = OperationTable("x+y", p=13, train_fraction=0.3, seed=1)
    assert len(table.train) == round(0.3 * 169)
    assert sorted([*table.train.tolist(), *table.validation.tolist()]) == list(range(169))
    assert torch.equal(table.train, OperationTable("x+y", p=13, train_fraction=0.3, seed=1).train)
    assert not torch.equal(table.train, OperationTable("x+y", p=13, train_fraction=0.3, seed=2).train)
    assert table.equations.max() == table.vocab - 1


@pytest.mark.parametrize(
    ("arguments", "words"), [({"p": 91}, "prime"), ({"op": "x*y"}, "x\\+y"), ({"train_fraction": 1.0}, "train")]
)
def test_impossible_tables_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        OperationTable(**arguments)


def test_the_transformer_has_the_papers_size():
    model = GrokTransformer(vocab=100)
    linear, norms = 4 * 128**2 + 8 * 128**2, 4 * 128
    assert sum(p.numel() for p in model.blocks.parameters()) == 2 * (linear + norms) == 394_240
    assert sum(p.numel() for p in model.parameters()) == 394_240 + 2 * 100 * 128


def test_the_transformer_sees_no_later_token():
    torch.manual_seed(0)
    model = GrokTransformer(vocab=20, d_model=16, n_heads=2)
    tokens = torch.randint(20, (4, 5))
    before = model(tokens)
    for place in range(5):
        changed = tokens.clone()
        changed[:, place] = (tokens[:, place] + 1) % 20
        after = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert (after[:, place:] - before[:, place:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_a_block_agrees_with_torchs_own_layer():
    torch.manual_seed(0)
    block = GrokTransformer(vocab=20, d_model=16, n_heads=4, n_layers=1).blocks[0]
    peer = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, batch_first=True)
    state = {name: torch.zeros_like(value) for name, value in peer.state_dict().items()}  # its biases stay zero
    names = {
        "self_attn.in_proj_weight": "query_key_value.weight",
        "self_attn.out_proj.weight": "mix.weight",
        "linear1.weight": "feed.0.weight",
        "linear2.weight": "feed.2.weight",
        "norm1.weight": "norm1.weight",
        "norm2.weight": "norm2.weight",
    }
    peer.load_state_dict(state | {theirs: block.state_dict()[ours] for theirs, ours in names.items()})
    x = torch.randn(3, 5, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(block(x), peer(x, src_mask=mask, is_causal=True), rtol=0, atol=1e-5)


def test_positions_are_sines_and_cosines():
    model = GrokTransformer(vocab=4, d_model=4, n_heads=1, n_layers=0)
    nn.init.zeros_(model.embedding.weight)
    nn.init.eye_(model.output.weight)
    place = model(torch.zeros(1, 3, dtype=torch.int64))[0, 2]
    wanted = torch.tensor([math.sin(2), math.cos(2), math.sin(2 / 100), math.cos(2 / 100)])
    torch.testing.assert_close(place, wanted)


def test_the_light_network_is_embeddings_side_by_side_through_a_hidden_layer():
    torch.manual_seed(0)
    table, model = OperationTable("x-y", p=11), OperandMLP(11, d_model=8, hidden=16)
    both = model.embedding(table.equations[:, [1, 3]]).flatten(1)
    torch.testing.assert_close(model(table.equations)[:, -1], model.output(torch.relu(model.hidden(both))))


def test_delay_is_read_off_the_curves():
    history = History((1, 2, 5, 10, 40), (0.1, 0.99, 1.0, 1.0, 1.0), (0.0, 0.0, 0.1, 0.6, 0.97))
    assert grokking_delay(history) == 20
    assert grokking_delay(history, level=0.5, memorised=1.0) == 2
    assert grokking_delay(history, level=0.99) == math.inf
    assert math.isnan(grokking_delay(history, memorised=1.1))


def test_a_step_is_torchs_adamw_with_warmup():
    table = OperationTable("x-y", p=5, train_fraction=0.6)
    ours, peer = (_seeded(lambda: OperandMLP(5, d_model=4, hidden=8)) for _ in range(2))
    run_grokking(ours, table, steps=15, lr=0.01, weight_decay=1.0, batch_size=len(table.train))
    optimizer = torch.optim.AdamW(peer.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=1.0)
    for step in range(15):
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, (step + 1) / 10)
        loss = nn.functional.cross_entropy(peer(table.equations[table.train])[:, -1], table.answers[table.train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, theirs in zip(ours.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_minibatches_go_through_the_training_set_and_runs_repeat():
    table = OperationTable("x+y", p=7)
    first, again = (_seeded(lambda: GrokTransformer(table.vocab, 16, 2)) for _ in range(2))
    assert run_grokking(first, table, steps=8, seed=3) == run_grokking(again, table, steps=8, seed=3)
    other = _seeded(lambda: GrokTransformer(table.vocab, 16, 2))
    run_grokking(other, table, steps=8, seed=4)
    assert not torch.equal(other.output.weight, first.output.weight)


def test_training_stops_when_it_has_understood():
    table = OperationTable("x-y", p=59, train_fraction=0.8)
    history = run_grokking(_seeded(lambda: OperandMLP(59)), table, steps=2000, lr=0.01, batch_size=9999, stop_at=0.9)
    assert history.validation[-1] >= 0.9
    assert history.steps[-1] < 600  # and not at the end of the budget
    assert grokking_delay(history, level=0.9) > 3
    assert history.steps == tuple(sorted(set(history.steps)))


def test_claims_measure_every_arm(home):
    from assay.lab import Lab

    for claim in (delayed_generalization, weight_decay_helps, less_data_slower):
        measured = claim(Lab(scale="smoke"))
        wanted = {name for expected in claim.expect for name in (expected.arm, getattr(expected, "than", expected.arm))}
        assert wanted <= set(measured)
    steps = measured["50 % of the table"]
    assert steps.number == 100  # the whole budget: not reached
    assert len(steps.y) <= 60
    assert steps.x[-1] == 100


def _seeded(make):
    torch.manual_seed(0)
    return make()
