"""How a workload is placed on a device: fusion, placement, tiling, lower bounds, and the program that results."""

from mapper.compile import Compiled, Placed, compile_graph
from mapper.errors import CapacityError, MappingError
from mapper.mapping import Mapping, OperatorMapping
from mapper.program import Move, Program, Repeat, Task
from mapper.search import Choice, Space
from mapper.strategies import strategy

__all__ = [
    "CapacityError",
    "Choice",
    "Compiled",
    "Mapping",
    "MappingError",
    "Move",
    "OperatorMapping",
    "Placed",
    "Program",
    "Repeat",
    "Space",
    "Task",
    "compile_graph",
    "strategy",
]
