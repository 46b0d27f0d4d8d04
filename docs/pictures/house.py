"""The rooms of the package, and which imports which: read from the imports there are."""

from collections.abc import Mapping
from typing import Any

import networkx as nx
from matplotlib.figure import Figure

from docs.pictures.style import Colours, one_axes
from recall_lightning.cli.main import _COMMANDS
from tests.test_imports import IMPORTS, MAY_IMPORT, PACKAGE, PLAIN_TORCH, own, room_of


def rooms() -> "nx.DiGraph[str]":
    """Return the rooms, with an edge from each to those that its modules import."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(room for room in MAY_IMPORT if room not in ("", "__main__"))
    for module, imports in IMPORTS.items():
        for _, target in own(imports):
            graph.add_edge(room_of(module), room_of(target))
    for command in _COMMANDS.values():  # imported by name
        graph.add_edge("cli.main", room_of(command.module.removeprefix(f"{PACKAGE.name}.")))
    graph.remove_nodes_from(["", "__main__"])
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    return graph


def house(colours: Colours) -> Figure:
    """Draw the rooms, the lower the more import them; what follows by another way is left out."""
    graph = nx.transitive_reduction(rooms())
    levels = list(nx.topological_generations(graph.reverse()))
    figure, axes = one_axes(8.4, 0.8 * len(levels), blank=True)
    axes.set_xlim(0, 10)
    axes.set_ylim(-0.5, len(levels) - 0.5)
    boxes: dict[str, Any] = {}
    for height, level in enumerate(levels):
        for position, room in enumerate(_beside(level, graph, boxes)):
            edge = colours.old if room in PLAIN_TORCH else colours.text
            box = {"boxstyle": "round,pad=0.45", "facecolor": colours.fill, "edgecolor": edge}
            place = (10 * (position + 1) / (len(level) + 1), height)
            boxes[room] = axes.text(*place, room, ha="center", va="center", bbox=box)
    for room, other in graph.edges:
        (x, y), (below_x, below_y) = boxes[room].get_position(), boxes[other].get_position()
        axes.plot([x, below_x], [y, below_y], color=colours.faint, linewidth=1, zorder=1)
        middle = (x + below_x) / 2, (y + below_y) / 2
        arrow = {"arrowstyle": "-|>", "color": colours.text, "linewidth": 0, "mutation_scale": 14}
        axes.annotate("", middle, (x, y), arrowprops=arrow, zorder=1)
    return figure


def _beside(level: list[str], graph: "nx.DiGraph[str]", boxes: Mapping[str, Any]) -> list[str]:
    """Return a level's rooms in the order of the mean place of what they import."""

    def place(room: str) -> float:
        below = [boxes[other].get_position()[0] for other in graph.successors(room)]
        return sum(below) / max(1, len(below))

    return sorted(level, key=lambda room: (place(room), room))
