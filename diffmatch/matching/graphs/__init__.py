"""Graphs as tensors: their edges, their files, and other libraries' graphs."""

from diffmatch.matching.graphs.convert import from_geometric as from_geometric
from diffmatch.matching.graphs.convert import from_networkx as from_networkx
from diffmatch.matching.graphs.convert import to_geometric as to_geometric
from diffmatch.matching.graphs.convert import to_networkx as to_networkx
from diffmatch.matching.graphs.files import read_graph as read_graph
from diffmatch.matching.graphs.files import write_graph as write_graph
from diffmatch.matching.graphs.graph import Graph as Graph
