from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from omnitrunk.engine.drawing.neighbors import RIGHT, THICK, THIN, WRONG, Found, framed, panel, search
from omnitrunk.engine.drawing.sheet import TILE
from omnitrunk.engine.evaluation.ranking import average_precisions, chance_average_precision, first_hits, ranks
from omnitrunk.engine.evaluation.retrieval import CHANCE, Side, figures, table


def side(features, samples):
    """A side whose samples are named CLASS/STEM."""
    names = np.array(samples)
    classes = np.array([name.partition("/")[0] for name in samples])
    unit = torch.nn.functional.normalize(torch.as_tensor(features, dtype=torch.float32), dim=1)
    return Side(features=unit, samples=names, classes=classes, positions=np.arange(len(names)))


def at(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_known_ranks():
    gallery = side(at(0, 10, 20, 30), ["a/1", "a/2", "b/3", "b/4"])
    query = side(at(1, 24, 29), ["a/1", "a/2", "b/4"])  # their own samples are nearest, third and nearest
    found = figures(query, gallery, "x->y")
    expected = {
        "recall@1": 2 / 3, "recall@1/chance": 1 / 4, "recall@5": 1.0, "recall@5/chance": 1.0, "recall@10": 1.0,
        "recall@10/chance": 1.0, "mean rank": 5 / 3, "mean rank/chance": 2.5, "class@1": 2 / 3, "class@1/chance": 1 / 3,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
    # By nearness the classes of the others come as a b b; b b a; b a a.
    assert found["class mAP"] == pytest.approx((1 + 1 / 3 + 1) / 3)


def by_hand(query, gallery):
    """One query at a time in float64: rank of the own sample, and average precision of the class among the others."""
    rank, precision = [], []
    for feature, sample, label in zip(query.features.double(), query.samples, query.classes, strict=True):
        order = np.argsort(-(gallery.features.double() @ feature).numpy())
        rank.append(1 + int(np.flatnonzero(gallery.samples[order] == sample)[0]))
        others = order[gallery.samples[order] != sample]
        places = 1 + np.flatnonzero(gallery.classes[others] == label)
        precision.append(np.mean(np.arange(1, len(places) + 1) / places))
    return np.array(rank), np.array(precision)


def test_against_one_query_at_a_time(seed):
    rng = np.random.default_rng(seed)
    names = [f"{'abcde'[i % 5]}/{i}" for i in range(1300)]  # more than one block of queries
    clean = rng.normal(size=(1300, 12))
    query = side(clean + rng.normal(size=clean.shape), names)
    order = rng.permutation(1300)
    gallery = side((clean + rng.normal(size=clean.shape))[order], [names[i] for i in order])
    rank, precision = by_hand(query, gallery)
    found = figures(query, gallery, "x->y")
    assert found["mean rank"] == pytest.approx(rank.mean(), abs=0.05)
    for places in (1, 5, 10):
        assert found[f"recall@{places}"] == pytest.approx((rank <= places).mean(), abs=0.003)
    assert found["class mAP"] == pytest.approx(precision.mean(), abs=1e-4)
    assert found["mean rank"] < 0.5 * found["mean rank" + CHANCE]


def test_random_features_give_chance(seed):
    rng = np.random.default_rng(seed)
    names = [f"{'abc'[i % 3]}/{i}" for i in range(600)]
    found = figures(*(side(rng.normal(size=(600, 40)), names) for _ in range(2)), "x->y")
    for name, tolerance in (("recall@10", 0.02), ("class@1", 0.08), ("class mAP", 0.01), ("mean rank", 30)):
        assert found[name] == pytest.approx(found[name + CHANCE], abs=tolerance), name


def test_where_all_is_alike_nothing_is_found():
    names = [f"{'ab'[i % 2]}/{i}" for i in range(40)]
    found = figures(*(side(torch.ones(40, 3), names) for _ in range(2)), "x->y")
    assert found["recall@1"] == found["recall@10"] == 0 and found["mean rank"] == 20.5
    assert found["class@1"] == found["class mAP"] == pytest.approx(19 / 39)


def test_ties_share_their_places():
    similarity = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1]])
    assert [ranks(similarity, torch.tensor([own])).item() for own in range(5)] == [1, 3, 3, 3, 5]
    relevant = torch.tensor([[False, True, False, True, False]])
    assert first_hits(similarity, relevant).item() == 0
    assert first_hits(similarity[:, 1:4], relevant[:, 1:4]).item() == pytest.approx(2 / 3)
    assert average_precisions(similarity, relevant).item() == pytest.approx(2 / 4)


@pytest.mark.parametrize(("relevant", "gallery"), [(1, 1), (1, 5), (2, 5), (4, 6), (6, 6)])
def test_chance_is_the_mean_over_all_orders(relevant, gallery):
    hits = torch.tensor(sorted(set(permutations([True] * relevant + [False] * (gallery - relevant)))))
    similarity = -torch.arange(gallery, dtype=torch.float32).expand(len(hits), -1)
    expected = average_precisions(similarity, hits).mean().item()
    assert chance_average_precision(np.array([relevant]), np.array([gallery])).item() == pytest.approx(expected)


def test_samples_and_classes_without_counterparts_do_not_count():
    gallery = side(at(0, 50), ["a/1", "b/2"])
    found = figures(side(at(0, 0, 50), ["a/1", "c/9", "b/7"]), gallery, "x->y")
    assert found["recall@1"] == 1
    assert found["class@1"] == 1 and found["class@1/chance"] == 1 / 2  # of b/7 alone: a/1 has no other of its class
    assert not [name for name in figures(side(at(0), ["b/7"]), gallery, "x->y") if "rank" in name or "recall" in name]
    with pytest.raises(ValueError, match=r"evaluate\.retrieval x->y: the val splits share no sample and no class"):
        figures(side(at(0), ["c/1"]), gallery, "x->y")
    with pytest.raises(ValueError, match="two val samples are called a/1"):
        figures(gallery, side(at(0, 50), ["a/1", "a/1"]), "x->y")


def test_the_table_has_chance_below_each_pair():
    gallery = side(at(0, 50), ["a/1", "b/2"])
    scores = {f"x->y/{name}": value for name, value in figures(gallery, gallery, "x->y").items()}
    scores |= {f"z->y/{name}": value for name, value in figures(side(at(0), ["a/5"]), gallery, "z->y").items()}
    lines = table(scores, ["x->y", "z->y"]).splitlines()
    assert lines[2].split() == ["x->y", "100.00%", "100.00%", "100.00%", "1.0", "-", "-"]
    assert lines[3].split() == ["untrained", *["-"] * 6]
    assert lines[4].split() == ["by", "chance", "50.00%", "100.00%", "100.00%", "1.5", "-", "-"]
    assert lines[5].split()[1:4] == ["-"] * 3 and len(set(map(len, lines[1:]))) == 1


def test_neighbors_come_in_order_and_wear_frames():
    names = ["a/1", "a/2", "b/3", "b/4", "c/5", "c/6", "c/7"]
    gallery, query = side(at(*range(0, 70, 10)), names), side(at(1, 12, 29, 30, 44, 52, 61), names)
    found = search(query, gallery, 3)
    assert found.queries.tolist() == [0, 3, 6]
    assert found.neighbors[0].tolist() == [0, 1, 2, 3, 4] and found.neighbors[2].tolist() == [6, 5, 4, 3, 2]
    pictures = {place: np.full((TILE, TILE, 3), 10 * place, np.uint8) for place in range(7)}
    one = Found(queries=np.array([0]), neighbors=np.array([[0, 1, 2]]))
    block = panel("x->y", one, [query, gallery], [pictures, pictures])
    assert list(block.pictures) == ["query", "1", "2", "3"] and "thick" in block.note
    assert (block.pictures["query"][0] == 0).all()
    for rank, (color, width) in enumerate([(RIGHT, THICK), (RIGHT, THIN), (WRONG, THIN)], 1):
        picture = block.pictures[str(rank)][0]
        assert tuple(picture[width - 1, TILE // 2]) == color and (picture[width, width:-width] == 10 * (rank - 1)).all()


def test_a_frame_covers_the_edge_alone():
    drawn = framed(np.zeros((30, 50, 3), np.uint8), right=False, same=False)
    inner = (drawn == 0).all(axis=2)
    assert inner.sum() == (30 - 2 * THIN) * (50 - 2 * THIN) and inner[THIN:-THIN, THIN:-THIN].all()
