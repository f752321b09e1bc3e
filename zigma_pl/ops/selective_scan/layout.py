"""How the CUDA scan divides its work: channels and states among threads, long paths into chunks."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

MAX_STATES = 64
CHUNK_STATES = 16  # states of a block of the kernels in chunks.cu
MIN_CHUNKED_TILES = 8  # a shorter path is walked sooner than two kernels are launched
CHUNK_BLOCKS = 4  # blocks of those kernels that a multiprocessor has room for
MIN_PIECE_TILES = 8  # to put shorter pieces together takes longer than to find them saves


@dataclass(frozen=True, eq=False)
class Layout:
    """How a block divides channels and states among its threads, see tiles.cu.

    Args:
        states: N padded.
        warps: warps in a block, of 8 channels each.
        tile: rows in shared memory at a time.
        steps: rows whose states the backward pass holds in registers.
        forward_blocks, backward_blocks: blocks that a multiprocessor should have room for in registers.
    """

    states: int
    warps: int = 4
    tile: int = 32
    steps: int = 8
    forward_blocks: int = 4
    backward_blocks: int = 3

    @property
    def channels(self) -> int:
        """Channels of a block."""
        return 8 * self.warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @property
    def chunk_parts(self) -> int:
        """Blocks that share the states of a chunk in the kernels in chunks.cu."""
        return self.states // CHUNK_STATES

    def num_tiles(self, num_tokens: int) -> int:
        """Returns the number of tiles that L rows fill."""
        return -(-num_tokens // self.tile)

    def _tile_bytes(self, row_bytes: int, arrays: int) -> int:
        """What place_tiles hands out."""
        terms = 2 * self.states * self.tile
        gaps = 16 * self.tile if row_bytes == 2 and self.states == 16 else 0
        raw = 2 * (row_bytes * (arrays * self.tile * self.channels + terms) + gaps)
        return raw + 4 * terms + 8 * self.channels + 16 * self.tile

    def _channel_rows_bytes(self) -> int:
        """What place_channel_rows hands out."""
        return 8 * (self.channels * (self.tile + 4) + 8 * self.warps)

    def chunk_bytes(self, row_bytes: int) -> int:
        """Dynamic shared memory of a block of the kernels in chunks.cu."""
        return self._tile_bytes(row_bytes, 3) + self._channel_rows_bytes() + 64 * self.channels

    def shared_bytes(self, row_bytes: int, backward: bool) -> int:
        """Dynamic shared memory of a block of scan_forward or scan_backward."""
        terms = 2 * self.states * self.tile
        common = self._tile_bytes(row_bytes, 4 if backward else 3)
        if not backward:
            return common + self._channel_rows_bytes() + self.tile * (self.channels + 8) * 4
        kept = self.tile // self.steps * self.states // 4 * self.threads * row_bytes
        cells = self.tile * (20 * self.channels + 16)
        quads = 1024 if row_bytes == 4 else 0
        pointers = 80 * self.warps + (2 * row_bytes + 4) * self.states
        return common + cells + self.warps * terms * 4 + 64 * self.threads + quads + kept + pointers


LAYOUTS = (
    Layout(states=16),
    Layout(states=32, steps=4, backward_blocks=2),
    Layout(states=64, warps=2, steps=4, forward_blocks=6, backward_blocks=3),
)


def layout_for(num_states: int) -> Layout:
    """Returns the division of work for N states."""
    return next(layout for layout in LAYOUTS if layout.states >= num_states)


class Cut(NamedTuple):
    """How a path is cut: into chunks that are walked side by side, and these into pieces, see `pieces_for`."""

    chunk_tiles: int
    num_chunks: int
    chunk_pieces: int


@functools.cache
def chunks_for(num_blocks: int, num_tiles: int, num_multiprocessors: int, resident_blocks: int) -> tuple[int, int]:
    """Cuts a path into chunks until the GPU is busy: returns (tiles in a chunk, number of chunks).

    Args:
        num_blocks: blocks without chunks.
        num_tiles: tiles of the path.
        num_multiprocessors: of the GPU.
        resident_blocks: blocks that a multiprocessor runs at a time.
    """
    room = num_multiprocessors * resident_blocks
    if 2 * num_blocks > room or num_tiles < MIN_CHUNKED_TILES:  # two passes over the rows must be worth it
        return num_tiles, 1
    sizes = {-(-num_tiles // chunks) for chunks in range(1, room // num_blocks + 1)}

    def longest(chunk_tiles: int) -> tuple[int, int]:
        """Tiles of the multiprocessor that gets most; of equals, more and shorter chunks hide more latency."""
        blocks = num_blocks * -(-num_tiles // chunk_tiles)
        return -(-blocks // num_multiprocessors) * chunk_tiles, chunk_tiles

    chunk_tiles = min(sizes, key=longest)
    return chunk_tiles, -(-num_tiles // chunk_tiles)


def pieces_for(num_blocks: int, chunk_tiles: int, num_chunks: int, num_multiprocessors: int) -> int:
    """Returns into how many pieces a chunk is cut to find what it leaves behind: as many as keep the GPU busy.

    There are up to twice as many blocks as can be at work at once, since many end long before the others do.

    Args:
        num_blocks: blocks of each piece.
        chunk_tiles: tiles in a chunk.
        num_chunks: of the path, of which one leaves nothing to another.
        num_multiprocessors: of the GPU.
    """
    room = 2 * CHUNK_BLOCKS * num_multiprocessors
    return max(1, min(chunk_tiles // MIN_PIECE_TILES, room // (num_blocks * max(1, num_chunks - 1))))
