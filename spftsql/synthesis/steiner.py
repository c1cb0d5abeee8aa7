"""The cheapest tree that connects some nodes of a graph, through others where it has to."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

_EXACT = 6  # nodes to connect up to which the tree is the cheapest; beyond, at most twice as dear


@dataclass(frozen=True, eq=False)
class Hub:
    """Nodes that are all linked to each other at one weight, each by the names that stand with it.

    It stands for an edge between any two of them, which would be many where hundreds of tables have one parent.
    """

    weight: float
    nodes: Mapping[str, tuple[str, ...]]


Hubs = Mapping[str, Sequence[Hub]]  # of each node


def spread(graph: nx.Graph[str], hubs: Hubs, costs: dict[str, float]) -> dict[str, str]:
    """Lowers `costs` to those of the cheapest paths from the nodes in it (Dijkstra 1959), and adds what they reach.

    For each node that a path made cheaper, the one before it. Among paths of one cost the order of the graph's nodes
    decides. No edge may be dearer than a hub that has both of its ends.
    """
    place = {node: number for number, node in enumerate(graph)}
    before: dict[str, str] = {}
    heap = [(cost, place[node], node) for node, cost in costs.items()]
    heapq.heapify(heap)
    used: set[Hub] = set()
    while heap:
        cost, _, node = heapq.heappop(heap)
        if cost > costs[node]:
            continue
        near = [(other, edge["weight"]) for other, edge in graph[node].items()]
        for hub in hubs.get(node, ()):
            if hub not in used:  # the first of its nodes is the cheapest, so no later one is a better way to the others
                used.add(hub)
                near += [(other, hub.weight) for other in hub.nodes]
        for other, weight in near:
            if cost + weight < costs.get(other, float("inf")):
                costs[other], before[other] = cost + weight, node
                heapq.heappush(heap, (costs[other], place[other], other))
    return before


def steiner_tree(graph: nx.Graph[str], wanted: Sequence[str], hubs: Hubs | None = None) -> tuple[str, ...] | None:
    """The nodes of a tree over `wanted` (the first one first), each linked to one before it; None where there is none.

    Up to six nodes of the least weight (Dreyfus and Wagner 1971), then by the nearest-terminal heuristic (Takahashi and
    Matsuyama 1980). Among trees of one weight the order of the graph's nodes decides, not that of any hash.
    """
    if not wanted:
        return ()
    edges = (_exact if len(wanted) <= _EXACT else _near)(graph, wanted, hubs or {})
    if edges is None:
        return None
    place = {node: number for number, node in enumerate(graph)}
    near: dict[str, list[str]] = {}
    for one, other in edges:
        near.setdefault(one, []).append(other)
        near.setdefault(other, []).append(one)
    order = [wanted[0]]
    for node in order:
        order += sorted((other for other in near.get(node, ()) if other not in order), key=place.__getitem__)
    return tuple(order)


def _exact(graph: nx.Graph[str], wanted: Sequence[str], hubs: Hubs) -> set[tuple[str, str]] | None:
    """The edges of the cheapest tree. `best[part][node]` is the cheapest tree over a part of `wanted` and a node."""
    everything = (1 << len(wanted)) - 1
    best: list[dict[str, float]] = [{} for _ in range(everything + 1)]
    came: list[dict[str, int | str]] = [{} for _ in range(everything + 1)]  # a smaller part, or the node before
    for part in range(1, everything + 1):
        costs, steps = best[part], came[part]
        if part & (part - 1) == 0:
            costs[wanted[part.bit_length() - 1]] = 0.0
        smaller = (part - 1) & part
        while smaller > part - smaller:  # each pair of halves once
            for node in best[smaller].keys() & best[part - smaller].keys():
                cost = best[smaller][node] + best[part - smaller][node]
                if cost < costs.get(node, float("inf")):
                    costs[node], steps[node] = cost, smaller
            smaller = (smaller - 1) & part
        steps.update(spread(graph, hubs, costs))
    if wanted[0] not in best[everything]:
        return None
    edges: set[tuple[str, str]] = set()
    waiting: list[tuple[int, str]] = [(everything, wanted[0])]
    while waiting:
        part, node = waiting.pop()
        step = came[part].get(node)
        if isinstance(step, int):
            waiting += [(step, node), (part - step, node)]
        elif step is not None:
            edges.add((step, node))
            waiting.append((part, step))
    return edges


def _near(graph: nx.Graph[str], wanted: Sequence[str], hubs: Hubs) -> set[tuple[str, str]] | None:
    tree, missing = {wanted[0]: None}, list(wanted[1:])
    edges: set[tuple[str, str]] = set()
    while missing:
        distances = dict.fromkeys(tree, 0.0)
        before = spread(graph, hubs, distances)
        reachable = [(distances[node], number) for number, node in enumerate(missing) if node in distances]
        if not reachable:
            return None
        node = missing[min(reachable)[1]]
        while node not in tree:
            edges.add((before[node], node))
            tree[node] = None
            node = before[node]
        missing = [other for other in missing if other not in tree]
    return edges
