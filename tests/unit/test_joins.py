"""Join paths: the cheapest tree over the key graph, bridge tables included, in an order that can be joined."""

from __future__ import annotations

from itertools import combinations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.databases.schema import Column, ForeignKey, Schema, Table
from spftsql.synthesis.joins import key_graph
from spftsql.synthesis.steiner import steiner_tree

Edges = list[tuple[int, int, float]]


def graph_of(nodes: int, edges: Edges) -> nx.Graph[str]:
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(f"t{node}" for node in range(nodes))
    for one, other, weight in edges:
        if one != other:
            graph.add_edge(f"t{one}", f"t{other}", weight=weight)
    return graph


def weight_of(graph: nx.Graph[str]) -> float:
    return float(nx.minimum_spanning_tree(graph, weight="weight").size(weight="weight"))


def least(graph: nx.Graph[str], wanted: list[str]) -> float | None:
    """By trying every set of bridge tables."""
    others = [node for node in graph if node not in wanted]
    found = [
        weight_of(graph.subgraph([*wanted, *bridges]))
        for size in range(len(others) + 1)
        for bridges in combinations(others, size)
        if nx.is_connected(graph.subgraph([*wanted, *bridges]))
    ]
    return min(found, default=None)


edges_of = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from([1.0, 1.5, 2.0])), min_size=4, max_size=14
)


@given(edges=edges_of, wanted=st.lists(st.integers(0, 6), min_size=1, max_size=5, unique=True))
def test_the_tree_is_the_cheapest(edges: Edges, wanted: list[int]) -> None:
    graph, names = graph_of(7, edges), [f"t{node}" for node in wanted]
    tree, cost = steiner_tree(graph, names), least(graph, names)
    if tree is None:
        assert cost is None
        return
    assert set(names) <= set(tree) and tree[0] == names[0] and len(set(tree)) == len(tree)
    assert weight_of(graph.subgraph(tree)) == pytest.approx(cost)
    for place, node in enumerate(tree[1:], 1):
        assert any(graph.has_edge(node, earlier) for earlier in tree[:place])


@given(edges=edges_of)
def test_many_tables_are_connected_too(edges: Edges) -> None:
    graph = graph_of(7, edges)
    tree = steiner_tree(graph, list(graph))
    assert (tree is not None) == nx.is_connected(graph)
    assert tree is None or set(tree) == set(graph)


def school() -> Schema:
    """Students and courses meet over enrolment; teachers over courses; rooms stand alone."""

    def table(name: str, *keys: str) -> Table:
        return Table(name, (Column("id", "number", "INT", primary_key=True, distinct=9), *(
            Column(key, "number", "INT", distinct=5) for key in keys)), 9)  # fmt: skip

    return Schema(
        "school",
        "sqlite",
        (table("student"), table("enrolment", "student_id", "course_id"), table("course", "teacher_id"),
         table("teacher"), table("room")),
        (ForeignKey("enrolment", "student_id", "student", "id"), ForeignKey("enrolment", "course_id", "course", "id"),
         ForeignKey("course", "teacher_id", "teacher", "id")),
    )  # fmt: skip


def test_bridges_are_found() -> None:
    graph = key_graph(school())
    assert graph.connect(["student", "course"]) == ("student", "enrolment", "course")
    assert graph.connect(["teacher", "student"]) == ("teacher", "course", "enrolment", "student")
    assert graph.connect(["course", "course"]) == ("course",)
    assert graph.connect([]) == ()
    assert graph.connect(["student", "room"]) is None
    joins = graph.joins(("student", "enrolment", "course"))
    assert joins is not None
    assert [join.equalities for join in joins] == [((0, "id", "student_id"),), ((1, "course_id", "id"),)]


def test_a_nearest_terminal_is_not_the_cheapest() -> None:
    """Three tables around a hub that is nobody's nearest: the heuristic alone takes the ring."""
    ring: Edges = [(0, 1, 1.9), (1, 2, 1.9), (0, 3, 1.0), (1, 3, 1.0), (2, 3, 1.0)]
    assert set(steiner_tree(graph_of(4, ring), ["t0", "t1", "t2"]) or ()) == {"t0", "t1", "t2", "t3"}
