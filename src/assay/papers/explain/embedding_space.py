"""Transformers in embedding space: weights read as words, without running the network.

What a transformer adds to its residual stream ends up in the same space as its word embeddings, and is turned into scores of
words by them. So every vector that lives in this space, a key or a value of a feed-forward layer, a column of an attention
head, can be read at once: multiply it by the embeddings and look which words score highest. Pairs of vectors that belong
together turn out to speak of the same words; products of attention matrices become tables of words by words. And since two
networks with the same vocabulary share the space of words, though not that of features, their layers can be compared there, and
a state of one can be handed to the other: embed it as words by the one's embeddings, take it back by the other's.

Source: Dar, Geva, Gupta and Berant, "Analyzing Transformers in Embedding Space", ACL 2023. Embeddings are matrices (words,
features) here, one row a word. All of them share a direction (frequent words against rare ones) that would dominate every
list; projections are centred over the words by default, as the paper's correlations are by definition.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn.text import encode
from assay.paper import Above, Cost, Curve, Higher, Score, claim

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured

Space = Literal["embedding", "feature"]

# Words of the left side whose pairs are looked at together.
_CHUNK = 512


@dataclass(frozen=True)
class Block:
    """The weights of one transformer layer, every row a vector of the residual stream.

    Attributes:
        keys: (m, d) what each feed-forward unit looks for.
        values: (m, d) what it writes.
        query, key, value: (heads, h, d) rows that read the stream.
        output: (heads, h, d) rows that write it; row j of a head belongs to row j of ``value``.
    """

    keys: Tensor
    values: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    def rows(self) -> dict[str, Tensor]:
        """Name -> (rows, d) of each of the six."""
        return {name: matrix.flatten(0, -2) for name, matrix in vars(self).items()}


def block_of(layer: nn.TransformerEncoderLayer) -> Block:
    """The weights of a layer of PyTorch's own. Norms are left as they are: their scale is not folded in."""
    attention, width = layer.self_attn, layer.self_attn.embed_dim
    assert isinstance(attention.in_proj_weight, Tensor)
    query, key, value = attention.in_proj_weight.detach().view(3, attention.num_heads, -1, width)
    output = attention.out_proj.weight.detach().t().reshape(attention.num_heads, -1, width)
    return Block(layer.linear1.weight.detach(), layer.linear2.weight.detach().t(), query, key, value, output)


def gpt2_blocks(weights: Mapping[str, Tensor], heads: int) -> list[Block]:
    """The layers of a GPT-2 out of its ``state_dict()``; its linear layers are kept transposed, inputs first.

    Args:
        weights: names as ``h.0.attn.c_attn.weight``, with or without a prefix ``transformer.``.
        heads: attention heads of a layer.
    """
    plain = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    blocks: list[Block] = []
    while f"h.{len(blocks)}.attn.c_attn.weight" in plain:
        start = f"h.{len(blocks)}."
        joint = plain[f"{start}attn.c_attn.weight"]  # (d, 3 d)
        query, key, value = joint.t().reshape(3, heads, -1, joint.shape[0])
        output = plain[f"{start}attn.c_proj.weight"].reshape(heads, -1, joint.shape[0])
        keys, values = plain[f"{start}mlp.c_fc.weight"].t(), plain[f"{start}mlp.c_proj.weight"]
        blocks.append(Block(keys, values, query, key, value, output))
    return blocks


# ---------------------------------------------------------------------------------------------------- reading


def project(vectors: Tensor, embedding: Tensor, centre: bool = True) -> Tensor:
    """Scores of all words: (..., d), (e, d) -> (..., e).

    Args:
        vectors: of the residual stream.
        embedding: the output embeddings, which the network itself multiplies its last state by.
        centre: take the mean over the words off every vector's scores.
    """
    if centre:
        embedding = embedding - embedding.mean(dim=0)
    return vectors @ embedding.t()


def top_words(vectors: Tensor, embedding: Tensor, words: Sequence[str], count: int = 10, centre: bool = True) -> list[list[str]]:
    """The words that each of the vectors (n, d) scores highest."""
    places = project(vectors, embedding, centre).topk(count, dim=-1).indices
    return [[words[place] for place in row] for row in places.tolist()]


class Pairs(NamedTuple):
    """The largest entries of a table of words by words: value, row and column, the largest first."""

    values: Tensor
    rows: Tensor
    columns: Tensor


def top_pairs(left: Tensor, right: Tensor, embedding: Tensor, count: int = 50, centre: bool = True) -> Pairs:
    """The largest entries of ``E left' right E'``, a table (e, e) that is never written down.

    With a head's ``query`` and ``key``: which word attends to which. With its ``value`` and ``output``: which word, when it
    is read, makes which be written.

    Args:
        left: (h, d) one matrix of a head.
        right: (h, d) the other.
        embedding: (e, d).
        count: entries.
        centre: take the mean over the words off.
    """
    readers, written = project(left, embedding, centre).t(), project(right, embedding, centre)  # (e, h), (h, e)
    words = len(embedding)
    best, places = readers.new_empty(0), torch.empty(0, dtype=torch.int64, device=readers.device)
    for start in range(0, words, _CHUNK):
        part = (readers[start : start + _CHUNK] @ written).flatten()
        values, inside = part.topk(min(count, len(part)))
        best, places = torch.cat([best, values]), torch.cat([places, inside + start * words])
        best, chosen = best.topk(min(count, len(best)))
        places = places[chosen]
    return Pairs(best, places // words, places % words)


def shared_words(one: Tensor, other: Tensor, embedding: Tensor, count: int = 100) -> Tensor:
    """How far two lists of vectors speak of the same words: (n, d), (n, d) -> (n,), Jaccard of the ``count`` strongest.

    Strong is what has a large score of either sign: a value may well write the opposite of what its key looks for.
    """
    sets = []
    for vectors in (one, other):
        strongest = project(vectors, embedding).abs().topk(count, dim=-1).indices
        sets.append(torch.zeros(len(vectors), len(embedding), device=vectors.device).scatter_(1, strongest, 1.0))
    both = (sets[0] * sets[1]).sum(dim=1)
    return both / (2 * count - both)


# ---------------------------------------------------------------------------------------------------- two networks


def correlation(one: Tensor, other: Tensor, embedding: Tensor, other_embedding: Tensor) -> Tensor:
    """Correlation over the words of the projections of every pair of vectors, without projecting any: (n, d), (m, c) -> (n, m).

    Three Gram matrices of the embeddings (d, d), (c, c) and (d, c) say all that is needed of them.

    Args:
        one: (n, d) vectors of the first network.
        other: (m, c) vectors of the second.
        embedding: (e, d) of the first.
        other_embedding: (e, c) of the second, row for row the same words.
    """
    a, b = embedding - embedding.mean(dim=0), other_embedding - other_embedding.mean(dim=0)
    joint = one @ (a.t() @ b) @ other.t()
    sizes = [((rows @ (e.t() @ e)) * rows).sum(dim=1).clamp_min(0).sqrt() for rows, e in ((one, a), (other, b))]
    return joint / (sizes[0][:, None] * sizes[1][None]).clamp_min(torch.finfo(joint.dtype).tiny)


def feature_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Correlation over the features of every pair of vectors, the control: (n, d), (m, d) -> (n, m)."""
    a, b = (F.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1) for rows in (one, other))
    return a @ b.t()


def align_layers(
    layers: Sequence[Tensor],
    other_layers: Sequence[Tensor],
    embedding: Tensor,
    other_embedding: Tensor,
    space: Space = "embedding",
) -> tuple[Tensor, list[int]]:
    """How alike every two layers of two networks are, and the matching of layers that is most alike altogether.

    Args:
        layers: (n_l, d) vectors of each layer of the first network, of one kind (keys, say).
        other_layers: (m_l, c) of the second.
        embedding: (e, d).
        other_embedding: (e, c).
        space: ``"embedding"`` correlates over words, ``"feature"`` over features (c = d), which two networks do not share.

    Returns:
        (layers, other layers) mean absolute correlations, and for each layer the one of the second network it is matched to.
    """

    def alike(one: Tensor, other: Tensor) -> Tensor:
        found = correlation(one, other, embedding, other_embedding) if space == "embedding" else feature_correlation(one, other)
        return found.abs().mean()

    table = torch.stack([torch.stack([alike(one, other) for other in other_layers]) for one in layers])
    _, matched = linear_sum_assignment(-table.cpu().numpy())
    return table, matched.tolist()


def stitch_kernel(embedding: Tensor, other_embedding: Tensor) -> Tensor:
    """Translates states: ``states @ kernel`` of the first network, (..., d), are states of the second, (..., c).

    A state's scores of words by the first network's embeddings, brought back by the pseudo-inverse of the second's.

    Args:
        embedding: (e, d) of the network that made the states.
        other_embedding: (e, c) of the network that is to go on with them.
    """
    # pinv(E') of the row convention, (e, c), is E (E' E)^-1: solved, not inverted.
    kernel: Tensor = torch.linalg.lstsq(other_embedding, embedding).solution.t()
    return kernel


# ------------------------------------------------------------------------------------------------------------ claims


class LanguageModel(nn.Module):
    """A small causal transformer that says the next word with its input embeddings.

    Args:
        words: size of the vocabulary.
        length: words of a text at most.
        width: length of a state.
        layers: transformer layers.
        heads: attention heads of each.

    Shape: token ids (B, L) int64 -> (B, L, words).
    """

    def __init__(self, words: int, length: int, width: int = 64, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.empty(length, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        # Matrices begin small, as BERT's and GPT-2's do: what is read in them later is what they learnt, not how they began.
        for matrix in self.parameters():
            if matrix.dim() > 1:
                nn.init.normal_(matrix, std=0.02)

    def start(self, ids: Tensor) -> Tensor:
        """States before the first layer: (B, L, width)."""
        vectors: Tensor = self.embedding(ids)
        return vectors + self.places[: ids.shape[1]]

    def go_on(self, states: Tensor, first: int, last: int | None = None) -> Tensor:
        """Through the layers from ``first`` to before ``last``."""
        mask = nn.Transformer.generate_square_subsequent_mask(states.shape[1], device=states.device)
        for layer in self.layers[first:last]:
            states = layer(states, mask, is_causal=True)
        return states

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.norm(self.go_on(self.start(ids), 0)) @ self.embedding.weight.t()
        return logits

    def blocks(self) -> list[Block]:
        return [block_of(layer) for layer in self.layers if isinstance(layer, nn.TransformerEncoderLayer)]


def language_model(ids: Tensor, words: int, layers: int, width: int, steps: int, seed: int) -> dict[str, Tensor]:
    """Weights of a language model trained on these texts, with Adam at 3e-3 falling along a cosine, batches of 16."""
    torch.manual_seed(seed)
    model = LanguageModel(words, ids.shape[1], width, layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch = ids[torch.randint(len(ids), (16,))]
        logits = model(batch[:, :-1])
        target = batch[:, 1:].masked_fill(batch[:, 1:] == 1, 0)  # neither padding nor unknown words are to be said
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return {**{name: tensor.detach() for name, tensor in model.state_dict().items()}, "loss": loss.detach()}


def _news(lab: Lab) -> Dataset:
    length, size = lab.pick(smoke=(12, 200), laptop=(32, 1000), full=(64, 3000))
    data = encode(lab.data("ag-news"), length, size)
    return data.subset(train=300, test=100) if lab.scale == "smoke" else data


def _pair(lab: Lab, data: Dataset) -> tuple[LanguageModel, LanguageModel, float]:
    """Two language models that differ in their seed alone, and the seconds that they took."""
    assert isinstance(data.train.inputs, Tensor)
    layers, width, steps = lab.pick(smoke=(2, 16, 4), laptop=(4, 64, 600), full=(6, 128, 20_000))
    models, seconds = [], 0.0
    for number in (0, 1):
        lab.progress(number, 2, "training language models")
        found = dict(
            lab.remember(
                language_model,
                ids=data.train.inputs,
                words=len(data.features),
                layers=layers,
                width=width,
                steps=steps,
                seed=2 * lab.seed + number,
            )
        )
        seconds += found.pop("seconds").item()
        found.pop("loss")
        model = LanguageModel(len(data.features), data.train.inputs.shape[1], width, layers)
        model.load_state_dict(found)
        models.append(model.eval().requires_grad_(False))
    return models[0], models[1], seconds


_SMALLER = (
    "Two models of 4 layers and 64 features, 600 batches of 16 out of 6,000 news with the 1,000 most frequent words, instead of "
    "BERTs and GPT-2s of 12 layers and more."
)


@claim(
    "Matching the layers of two language models that were trained from different seeds by the correlation of their weights in "
    "the space of words finds more of the right ones than in the space of features, by a fifth of the layers, and than with the "
    "words of one model shuffled.",
    expect=(
        Higher("embedding space", than="feature space", by=0.2),
        Higher("embedding space", than="words shuffled", by=0.2),
    ),
    scaled_down=_SMALLER,
    unit="share of the layers matched to their like, mean over six kinds of weights",
    needs=("ag-news",),
)
def layers_align_in_embedding_space(lab: Lab) -> Measured:
    data = _news(lab)
    one, two, seconds = _pair(lab, data)
    a, b = one.embedding.weight, two.embedding.weight
    shuffled = b[torch.randperm(len(b), generator=lab.generator(1))]
    blocks, others = [x.rows() for x in one.blocks()], [x.rows() for x in two.blocks()]
    arms: dict[str, float | Curve] = {}
    settings: dict[str, tuple[Tensor, Space]] = {
        "embedding space": (b, "embedding"),
        "feature space": (b, "feature"),
        "words shuffled": (shuffled, "embedding"),
    }
    for arm, (second, space) in settings.items():
        right = []
        for kind in blocks[0]:
            _, matched = align_layers([x[kind] for x in blocks], [x[kind] for x in others], a, second, space)
            right.append(sum(place == other for place, other in enumerate(matched)) / len(matched))
        arms[arm] = Score(sum(right) / len(right), Cost(seconds=seconds)) if arm == "embedding space" else sum(right) / len(right)
    return arms


@claim(
    "The hundred words of which a feed-forward key speaks most overlap with those of its own value more than with those of "
    "another value of the same layer, by a hundredth of the words of both.",
    expect=Higher("own value", than="another value", by=0.01),
    scaled_down=_SMALLER,
    unit="Jaccard overlap of the 100 strongest words, mean over units and layers",
    needs=("ag-news",),
)
def related_pairs_overlap(lab: Lab) -> Measured:
    data = _news(lab)
    one, two, _ = _pair(lab, data)
    torch.manual_seed(lab.seed)
    fresh = LanguageModel(len(data.features), one.places.shape[0], one.places.shape[1], len(one.layers))
    lines: dict[str, list[float]] = {"own value": [], "another value": [], "own value, untrained": []}
    for number in range(len(one.layers)):
        found: dict[str, list[Tensor]] = {arm: [] for arm in lines}
        for model in (one, two):
            block, untrained = model.blocks()[number], fresh.blocks()[number]
            other = torch.randperm(len(block.values), generator=lab.generator(number))
            found["own value"].append(shared_words(block.keys, block.values, model.embedding.weight))
            found["another value"].append(shared_words(block.keys, block.values[other], model.embedding.weight))
            found["own value, untrained"].append(shared_words(untrained.keys, untrained.values, fresh.embedding.weight.detach()))
        for arm, parts in found.items():
            lines[arm].append(torch.cat(parts).mean().item())
    return {arm: Curve(y, value=sum(y) / len(y), x_name="layer", y_name="overlap") for arm, y in lines.items()}


class Topics(nn.Module):
    """The last layers of a language model with a classifier on the mean of what they return.

    Args:
        model: whose layers; they are copied.
        first: the first of them.
        num_classes: number of logits.

    Shape: states (B, L, width), present (B, L) bool -> (B, num_classes).
    """

    def __init__(self, model: LanguageModel, first: int, num_classes: int) -> None:
        super().__init__()
        self.tail = copy.deepcopy(model).requires_grad_(True)
        self.first = first
        self.head = nn.Linear(model.places.shape[1], num_classes)

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        states = self.tail.norm(self.tail.go_on(states, self.first))
        weight = present.unsqueeze(-1).to(states)
        logits: Tensor = self.head((states * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1))
        return logits


def fine_tuned(model: LanguageModel, ids: Tensor, labels: Tensor, num_classes: int, epochs: int, seed: int) -> dict[str, Tensor]:
    """Weights of :class:`Topics` on the second half of the model's layers; the first half stays as it is."""
    torch.manual_seed(seed)
    first = len(model.layers) // 2
    topics = Topics(model, first, num_classes)
    states = _states(model, first, ids)
    optimizer = torch.optim.Adam(topics.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(ids)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(topics(states[rows], ids[rows] != 0), labels[rows]).backward()
            optimizer.step()
    return {name: tensor.detach() for name, tensor in topics.state_dict().items()}


@claim(
    "A classifier of topics fine-tuned on the last layers of one model reads another model's states, translated through the "
    "words and without any training, at least ten points better than chance, and than through a random rotation or through "
    "shuffled words; from which layer the states are taken is chosen on training texts.",
    expect=(
        Above("through the words", 0.35),
        Higher("through the words", than="random rotation", by=0.1),
        Higher("through the words", than="words shuffled", by=0.1),
    ),
    scaled_down=f"{_SMALLER} Four topics instead of sentiment.",
    unit="test accuracy, four classes",
    needs=("ag-news",),
)
def stitching_transfers(lab: Lab) -> Measured:
    data = _news(lab)
    one, two, _ = _pair(lab, data)
    assert isinstance(data.train.inputs, Tensor)
    assert isinstance(data.test.inputs, Tensor)
    count = lab.pick(smoke=100, laptop=2000, full=5000)
    ids, labels = data.train.inputs[:count], data.train.labels[:count]
    weights = dict(
        lab.remember(
            fine_tuned,
            model=one,
            ids=ids,
            labels=labels,
            num_classes=data.num_classes,
            epochs=lab.pick(smoke=1, laptop=2, full=5),
            seed=lab.seed,
        )
    )
    weights.pop("seconds")
    first = len(one.layers) // 2
    topics = Topics(one, first, data.num_classes)
    topics.load_state_dict(weights)
    topics.eval()
    a, b = one.embedding.weight, two.embedding.weight
    turn, _ = torch.linalg.qr(torch.randn(a.shape[1], a.shape[1], generator=lab.generator(2)))
    kernels = {
        "through the words": stitch_kernel(b, a),
        "random rotation": turn,
        "words shuffled": stitch_kernel(b[torch.randperm(len(b), generator=lab.generator(3))], a),
    }
    # The last texts of the training half were not fine-tuned on; on them the layer is chosen, for every arm alike.
    chosen = slice(-lab.pick(smoke=50, laptop=500, full=500), None)
    valid = (data.train.inputs[chosen], data.train.labels[chosen])
    test = (data.test.inputs, data.test.labels)
    layers = range(len(two.layers) + 1)
    right: dict[str, list[tuple[float, float]]] = {arm: [] for arm in kernels}
    for layer in layers:
        found = [_states(two, layer, ids) for ids, _ in (valid, test)]
        for arm, kernel in kernels.items():
            held, tested = (_reads(topics, states @ kernel, *split) for states, split in zip(found, (valid, test), strict=True))
            right[arm].append((held, tested))
    arms: dict[str, float | Curve] = {"not stitched": _reads(topics, _states(one, first, test[0]), *test)}
    for arm, both in right.items():
        best = max(both, key=lambda pair: pair[0])[1]
        line = [tested for _, tested in both]
        arms[arm] = Curve(line, list(layers), value=best, x_name="layers of the second model", y_name="test accuracy")
    return arms


@torch.no_grad()
def _states(model: LanguageModel, layer: int, ids: Tensor) -> Tensor:
    """States of the texts after so many layers."""
    return torch.cat([model.go_on(model.start(part), 0, layer) for part in ids.split(512)])


@torch.no_grad()
def _reads(topics: Topics, states: Tensor, ids: Tensor, labels: Tensor) -> float:
    """Accuracy of the classifier on states (N, L, width) of these texts."""
    parts = zip(states.split(512), ids.split(512), strict=True)
    said = torch.cat([topics(part, words != 0).argmax(dim=1) for part, words in parts])
    return (said == labels).double().mean().item()
