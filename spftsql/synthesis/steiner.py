"""The cheapest tree that connects some nodes of a graph, through others where it has to."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise

import networkx as nx

_EXACT = 6  # nodes to connect up to which the tree is the cheapest; beyond, at most twice as dear


def steiner_tree(graph: nx.Graph[str], wanted: Sequence[str]) -> tuple[str, ...] | None:
    """The nodes of a tree over `wanted` (the first one first), each linked to one before it; None where there is none.

    Up to six nodes of the least weight (Dreyfus and Wagner 1971), then by the nearest-terminal heuristic (Takahashi and
    Matsuyama 1980). Among trees of one weight the order of the graph's nodes decides, not that of any hash.
    """
    if not wanted:
        return ()
    edges = _exact(graph, wanted) if len(wanted) <= _EXACT else _near(graph, wanted)
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


def _exact(graph: nx.Graph[str], wanted: Sequence[str]) -> set[tuple[str, str]] | None:
    """The edges of the cheapest tree. `best[part][node]` is the cheapest tree over a part of `wanted` and a node."""
    place = {node: number for number, node in enumerate(graph)}
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
        heap = [(cost, place[node], node) for node, cost in costs.items()]
        heapq.heapify(heap)
        while heap:
            cost, _, node = heapq.heappop(heap)
            if cost > costs[node]:
                continue
            for other, edge in graph[node].items():
                if cost + edge["weight"] < costs.get(other, float("inf")):
                    costs[other], steps[other] = cost + edge["weight"], node
                    heapq.heappush(heap, (costs[other], place[other], other))
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


def _near(graph: nx.Graph[str], wanted: Sequence[str]) -> set[tuple[str, str]] | None:
    tree, missing = {wanted[0]: None}, list(wanted[1:])
    edges: set[tuple[str, str]] = set()
    while missing:
        distances, paths = nx.multi_source_dijkstra(graph, list(tree), weight="weight")
        reachable = [(distances[node], number) for number, node in enumerate(missing) if node in distances]
        if not reachable:
            return None
        path = paths[missing[min(reachable)[1]]]
        edges.update((one, other) for one, other in pairwise(path) if other not in tree)
        tree |= dict.fromkeys(path)
        missing = [node for node in missing if node not in tree]
    return edges
