"""Join paths: the cheapest tree over the key graph, bridge tables included, in an order that can be joined."""

from __future__ import annotations

import random
import time
from itertools import combinations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.databases.schema import Column, ForeignKey, Schema, Table
from spftsql.synthesis.joins import Join, KeyGraph, key_graph
from spftsql.synthesis.steiner import Hub, steiner_tree

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


hubs_of = st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=5, unique=True), max_size=3)


@given(edges=edges_of, groups=hubs_of, wanted=st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True))
def test_a_hub_gives_the_tree_that_its_edges_give(edges: Edges, groups: list[list[int]], wanted: list[int]) -> None:
    """Groups of nodes that are all linked, without an edge for each two of them: the same tree, ties included."""
    written_out, short = (
        graph_of(7, [(a, b, 1.0) for a, b, _ in edges]),
        graph_of(7, [(a, b, 1.0) for a, b, _ in edges]),
    )
    hubs: dict[str, list[Hub]] = {}
    for group in groups:
        hub = Hub(1.5, {f"t{node}": () for node in group})
        for node in hub.nodes:
            hubs.setdefault(node, []).append(hub)
        for one, other in combinations(hub.nodes, 2):
            if not written_out.has_edge(one, other):
                written_out.add_edge(one, other, weight=1.5)
    names = [f"t{node}" for node in wanted]
    assert steiner_tree(short, names, hubs) == steiner_tree(written_out, names)


def star(tables: int) -> Schema:
    """A table of users, and many that refer to it, as in a warehouse where every table has a `user_id`."""
    satellites = [
        Table(f"t{n}", (Column("id", "number", "INT", True, 9), Column("user_id", "number", "INT", False, 5)), 9)
        for n in range(tables)
    ]
    users = Table("users", (Column("id", "number", "INT", True, 9),), 9)
    keys = tuple(ForeignKey(table.name, "user_id", "users", "id") for table in satellites)
    return Schema("star", "sqlite", (users, *satellites), keys)


def test_siblings_join_without_their_parent() -> None:
    graph = key_graph(star(5))
    assert graph.connect(["t1", "t3"]) == ("t1", "t3")
    assert graph.joins(("t1", "t3")) == (Join(((0, "user_id", "user_id"),)),)
    assert graph.distance("t1", ["t4"]) == 1.5 and graph.distance("t1", ["users"]) == 1.0
    assert graph.neighbours(["t1"]) == ["users", "t0", "t2", "t3", "t4"]


def test_a_parent_of_many_tables_costs_no_edge_for_each_two_of_them() -> None:
    schema = star(2_000)
    graph = KeyGraph(schema)
    assert graph.graph.number_of_edges() == 2_000
    started = time.process_time()
    rng = random.Random(0)
    for _ in range(20):
        tables = rng.sample([table.name for table in schema.tables], 3)
        assert set(graph.connect(tables) or ()) >= set(tables)
        assert graph.distance(tables[0], tables[1:]) in (1.0, 1.5)
    assert time.process_time() - started < 10


def campus(*more: ForeignKey) -> Schema:
    """Courses are told apart by department and number; enrolments and rooms refer to both."""

    def table(name: str, columns: str, primary: str) -> Table:
        return Table(name, tuple(
            Column(column, "number" if column in ("number", "no") else "text", "", column in primary.split(), 5)
            for column in columns.split()
        ), 9)  # fmt: skip

    def key(table: str, dept: str, number: str, constraint: int = 1) -> tuple[ForeignKey, ForeignKey]:
        return (
            ForeignKey(table, dept, "course", "dept", constraint),
            ForeignKey(table, number, "course", "number", constraint),
        )

    return Schema(
        "campus",
        "sqlite",
        (
            table("course", "dept number title", "dept number"),
            table("enrolment", "student dept number", ""),
            table("lesson", "room no faculty", ""),
            table("department", "name head", "name"),
        ),
        (*key("enrolment", "dept", "number"), *key("lesson", "faculty", "no")[::-1], *more),
    )


def test_a_key_of_two_columns_joins_over_both() -> None:
    graph = key_graph(campus())
    assert graph.joins(("course", "enrolment")) == (Join(((0, "dept", "dept"), (0, "number", "number"))),)
    assert graph.joins(("lesson", "course")) == (Join(((0, "no", "number"), (0, "faculty", "dept"))),)
    assert graph.joins(("enrolment", "lesson")) == (Join(((0, "dept", "faculty"), (0, "number", "no"))),)
    assert graph.distance("enrolment", ["course"]) == 1.0 and graph.distance("enrolment", ["lesson"]) == 1.5


def test_a_part_of_a_key_is_no_key() -> None:
    graph = key_graph(campus(ForeignKey("course", "dept", "department", "name")))
    assert graph.role(("course", "number")) == graph.role(("enrolment", "dept")) == "part"
    assert graph.role(("course", "dept")) == "fk" and graph.role(("department", "name")) == "key"
    assert graph.role(("course", "title")) == ""
    assert graph.columns("course", "any", "key") == ()
    assert graph.domain(("enrolment", "number")) == graph.domain(("lesson", "no"))


def test_a_column_of_a_key_may_have_a_parent_of_its_own() -> None:
    """Whoever refers to a course refers to its department; two of them still join over the whole course."""
    graph = key_graph(campus(ForeignKey("course", "dept", "department", "name")))
    assert graph.joins(("department", "lesson")) == (Join(((0, "name", "faculty"),)),)
    assert graph.joins(("enrolment", "lesson")) == (Join(((0, "dept", "faculty"), (0, "number", "no"))),)


def test_a_key_that_has_lost_a_column_joins_nothing() -> None:
    whole = campus()
    tables = tuple(t if t.name != "lesson" else Table("lesson", t.columns[:2], 9) for t in whole.tables)
    graph = KeyGraph(Schema("campus", "sqlite", tables, whole.foreign_keys))
    assert graph.joins(("course", "lesson")) is None and graph.distance("course", ["lesson"]) is None
    assert graph.joins(("course", "enrolment")) is not None


def test_what_refers_to_a_row_of_another_table() -> None:
    graph = key_graph(campus(ForeignKey("course", "dept", "department", "name")))
    assert graph.refers("enrolment", "course", {("dept", "dept"), ("number", "number")})
    assert graph.refers("course", "department", {("dept", "name")})
    assert not graph.refers("enrolment", "course", {("dept", "dept")})
    assert not graph.refers("course", "enrolment", {("dept", "dept"), ("number", "number")})
