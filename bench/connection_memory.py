"""Memory per idle connection of the edge. The measuring is edge.py's, which has the processes to measure."""

import edge


def run():
    return edge.measure("connection-memory")
