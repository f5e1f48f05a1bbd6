"""Graphs on their way to and from the object store.

A large one takes seconds of processor time. A loop that stood still for so long would lose its lease and miss its
heartbeats, so that is done in a thread, where the loop gets its turns.
"""

from __future__ import annotations

from typing import Final

import anyio.to_thread

from evpipe.bus.protocol import Bus
from evpipe.core.graph import Graph
from evpipe.errors import UsageError
from evpipe.wire.artifacts import ArtifactWriter
from evpipe.wire.graphs import decode_graph, encode_graph

#: About 25 ms of work.
LARGE_BYTES: Final = 256 * 1024
LARGE_STEPS: Final = 2_500


async def graph_bytes(graph: Graph, writer: ArtifactWriter, *, here: bool) -> bytes:
    """Encode a graph.

    Args:
        writer: stores its large constants.
        here: not in a thread: nobody else needs this loop.

    Raises:
        EncodingError, LimitExceeded: as `encode_graph`.
    """
    if here and len(graph.steps) < LARGE_STEPS:
        return encode_graph(graph, writer)
    return await anyio.to_thread.run_sync(encode_graph, graph, writer)


async def fetch_graph(bus: Bus, digest: str) -> Graph:
    """Get a graph from the object store.

    Raises:
        UsageError: if it is not there, or cannot run.
        RemoteProtocolError: if it is no graph.
    """
    data = await bus.objects.get(digest)
    if data is None:
        raise UsageError(f"the graph {digest} is not in the object store")
    if len(data) < LARGE_BYTES:
        return decode_graph(data)
    return await anyio.to_thread.run_sync(decode_graph, data)
