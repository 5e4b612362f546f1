"""Transformers in embedding space: equal to explicit projections, exact on identical networks, weights where they belong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from assay.errors import AssayError
from assay.lab import Lab
from assay.papers.explain import embedding_space as module
from assay.papers.explain.embedding_space import (
    LanguageModel,
    align_layers,
    block_of,
    correlation,
    gpt2_blocks,
    project,
    shared_words,
    stitch_kernel,
    top_pairs,
    top_words,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_correlation_equals_that_of_explicit_projections():
    one, other, a, b = random(7, 12), random(5, 9, seed=1), random(80, 12, seed=2) + 1, random(80, 9, seed=3) - 2
    whole = torch.corrcoef(torch.cat([one @ a.t(), other @ b.t()]))[:7, 7:]
    torch.testing.assert_close(correlation(one, other, a, b), whole, rtol=1e-9, atol=1e-12)


def test_a_word_speaks_of_itself():
    embedding = random(60, 40) + 3 * random(1, 40, seed=1)  # all words share a direction
    words = [f"word{number}" for number in range(60)]
    assert [row[0] for row in top_words(embedding - embedding.mean(dim=0), embedding, words, 3)] == words
    assert not project(embedding, embedding).mean(dim=-1).abs().max() > 1e-9
    torch.testing.assert_close(project(embedding[:2], embedding, centre=False), embedding[:2] @ embedding.t())


def test_top_pairs_are_those_of_the_whole_table(monkeypatch: pytest.MonkeyPatch):
    embedding, left, right = random(50, 8), random(3, 8, seed=1), random(3, 8, seed=2)
    centred = embedding - embedding.mean(dim=0)
    table = centred @ left.t() @ right @ centred.t()
    monkeypatch.setattr(module, "_CHUNK", 7)
    found = top_pairs(left, right, embedding, count=20)
    torch.testing.assert_close(found.values, table.flatten().topk(20).values)
    torch.testing.assert_close(table[found.rows, found.columns], found.values)


def test_shared_words():
    embedding = random(400, 20)
    one = random(30, 20, seed=1)
    assert shared_words(one, -2 * one, embedding).tolist() == [1.0] * 30
    by_hand = [
        len(set(a) & set(b)) / len(set(a) | set(b))
        for a, b in zip(
            *(project(x, embedding).abs().topk(50).indices.tolist() for x in (one, random(30, 20, seed=2))), strict=True
        )
    ]
    torch.testing.assert_close(shared_words(one, random(30, 20, seed=2), embedding, 50), torch.tensor(by_hand))


def test_layers_of_a_rotated_copy_are_found_in_the_space_of_words_only():
    """The same network in other coordinates, its layers in another order."""
    turn, _ = torch.linalg.qr(random(16, 16, seed=5))
    embedding = random(300, 16)
    layers = [random(12, 16, seed=number) for number in range(10, 15)]
    order = [3, 0, 4, 1, 2]
    others = [layers[place] @ turn for place in order]
    table, matched = align_layers(layers, others, embedding, embedding @ turn)
    assert [order[place] for place in matched] == list(range(5))
    assert (table.gather(1, torch.tensor(matched)[:, None]).squeeze(1) >= table.amax(dim=1) - 1e-12).all()
    assert [order[p] for p in align_layers(layers, others, embedding, embedding @ turn, "feature")[1]] != list(range(5))
    same = correlation(layers[0], layers[0], embedding, embedding)
    torch.testing.assert_close(same.diagonal(), torch.ones(12, dtype=torch.float64))


def test_stitching_undoes_a_change_of_coordinates():
    embedding, change = random(100, 8), random(8, 8, seed=1)
    states = random(5, 8, seed=2)
    torch.testing.assert_close(states @ stitch_kernel(embedding, embedding), states)
    # The same words with other features, E C: a state x scores them x (E C)' = (x C') E'.
    torch.testing.assert_close(stitch_kernel(embedding @ change, embedding), change.t())
    wide = stitch_kernel(embedding, random(100, 6, seed=3))
    assert wide.shape == (8, 6)
    torch.testing.assert_close(wide, embedding.t() @ torch.linalg.pinv(random(100, 6, seed=3)).t())


def test_weights_stand_where_the_layer_uses_them():
    """Attention and feed-forward layer put together from the block's rows say what PyTorch's layer says."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 20, 0.0, "relu", batch_first=True, norm_first=True, bias=False).eval()
    block = block_of(layer)
    states = torch.randn(2, 5, 12)
    normed = layer.norm1(states)
    query, key, value = (torch.einsum("bld,hkd->bhlk", normed, part) for part in (block.query, block.key, block.value))
    weights = (query @ key.transpose(-1, -2) / 4**0.5).softmax(dim=-1)
    middle = states + torch.einsum("bhlk,hkd->bld", weights @ value, block.output)
    whole = middle + torch.relu(layer.norm2(middle) @ block.keys.t()) @ block.values
    torch.testing.assert_close(whole, layer(states), rtol=1e-4, atol=1e-5)
    assert {name: tuple(rows.shape) for name, rows in block.rows().items()} == {
        "keys": (20, 12),
        "values": (20, 12),
        **dict.fromkeys(("query", "key", "value", "output"), (12, 12)),
    }


def test_gpt2_is_kept_transposed():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 20, 0.0, batch_first=True)
    block = block_of(layer)
    kept = {
        "transformer.h.0.attn.c_attn.weight": layer.self_attn.in_proj_weight.detach().t(),
        "transformer.h.0.attn.c_proj.weight": layer.self_attn.out_proj.weight.detach().t(),
        "transformer.h.0.mlp.c_fc.weight": layer.linear1.weight.detach().t(),
        "transformer.h.0.mlp.c_proj.weight": layer.linear2.weight.detach().t(),
    }
    (found,) = gpt2_blocks(kept, heads=3)
    for name, rows in block.rows().items():
        torch.testing.assert_close(found.rows()[name], rows, rtol=0, atol=0)


def test_language_model_looks_back_only():
    torch.manual_seed(0)
    model = LanguageModel(50, 8, 16, 2).eval()
    ids = torch.randint(2, 50, (3, 8))
    changed = ids.clone()
    changed[:, 5:] = 7
    torch.testing.assert_close(model(ids)[:, :5], model(changed)[:, :5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.go_on(model.go_on(model.start(ids), 0, 1), 1), model.go_on(model.start(ids), 0))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.mark.parametrize(
    "claim", [module.layers_align_in_embedding_space, module.related_pairs_overlap, module.stitching_transfers]
)
def test_claims_at_smoke_scale(claim, kept: Path, monkeypatch: pytest.MonkeyPatch):
    lab = Lab(scale="smoke")
    try:
        lab.data("ag-news")
    except AssayError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("assay.lab.memory.trained_dir", lambda: kept)
    arms = claim(lab)
    assert {name for one in claim.expect for name in (one.arm, getattr(one, "than", one.arm))} <= set(arms)
