"""What the edge adds to the 99th percentile of one connection. The measuring is edge.py's."""

import edge


def run():
    return edge.measure("edge-latency")
