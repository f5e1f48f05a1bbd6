"""Graphs on their way to and from the object store.

A large one takes seconds of processor time. A loop that stood still for so long would lose its lease and miss its
heartbeats, so that is done in a thread, where the loop gets its turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import anyio
import anyio.to_thread

from evpipe.bus.protocol import Bus
from evpipe.core.graph import Graph, graphs_in
from evpipe.errors import UsageError, only_one
from evpipe.wire.artifacts import ArtifactWriter
from evpipe.wire.graphs import decode_graph, encode_graph

#: About 25 ms of work.
LARGE_BYTES: Final = 256 * 1024
LARGE_STEPS: Final = 2_500
#: Graphs on their way to the store at the same time.
PUTS_MAX: Final = 16


async def graph_bytes(graph: Graph, writer: ArtifactWriter, *, here: bool) -> tuple[bytes, dict[str, bytes]]:
    """Encode a graph.

    Args:
        writer: stores its large constants.
        here: not in a thread: nobody else needs this loop.

    Returns:
        Its bytes, and those of the graphs that are built into it, by digest.

    Raises:
        EncodingError, LimitExceeded: as `encode_graph`.
    """
    graphs: dict[str, bytes] = {}
    if here and sum(len(found.steps) for found in graphs_in(graph)) < LARGE_STEPS:
        return encode_graph(graph, writer, graphs), graphs
    return await anyio.to_thread.run_sync(encode_graph, graph, writer, graphs), graphs


async def store_graphs(bus: Bus, graphs: Mapping[str, bytes]) -> None:
    """Store encoded graphs, by digest; in any order, for nobody names them before all are there."""
    limiter = anyio.CapacityLimiter(PUTS_MAX)

    async def put(digest: str, data: bytes) -> None:
        async with limiter:
            await bus.objects.put(digest, data)

    try:
        async with anyio.create_task_group() as task_group:
            for digest, data in graphs.items():
                task_group.start_soon(put, digest, data)
    except ExceptionGroup as group:
        raise only_one(group) from None


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
