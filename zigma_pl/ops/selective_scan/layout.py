"""Division of the CUDA scan's work: channels and states among threads, long sequences into chunks."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

MAX_STATES = 64
CHUNK_STATES = 16  # states per block of the kernels in chunks.cu
MIN_CHUNKED_TILES = 8  # for shorter sequences, a second kernel takes longer than chunks save
CHUNK_BLOCKS = 4  # blocks of the kernels in chunks.cu that fit on a multiprocessor
MIN_PIECE_TILES = 8  # for shorter pieces, combining them takes longer than they save


@dataclass(frozen=True, eq=False)
class Layout:
    """Division of channels and states among the threads of a block; see tiles.cu.

    Args:
        states: N, padded.
        warps: warps per block, with 8 channels each.
        tile: number of rows that are in shared memory at a time.
        steps: number of rows whose states the backward pass holds in registers.
        forward_blocks, backward_blocks: minimum number of blocks per multiprocessor, which limits the registers.
    """

    states: int
    warps: int = 4
    tile: int = 32
    steps: int = 8
    forward_blocks: int = 4
    backward_blocks: int = 3

    @property
    def channels(self) -> int:
        """Channels per block."""
        return 8 * self.warps

    @property
    def threads(self) -> int:
        """Threads per block."""
        return 32 * self.warps

    @property
    def chunk_parts(self) -> int:
        """Number of blocks among which the kernels in chunks.cu divide the states of a chunk."""
        return self.states // CHUNK_STATES

    def num_tiles(self, num_tokens: int) -> int:
        """Return the number of tiles for L rows."""
        return -(-num_tokens // self.tile)

    def _tile_bytes(self, row_bytes: int, arrays: int) -> int:
        """Return the shared memory of place_tiles."""
        terms = 2 * self.states * self.tile
        gaps = 16 * self.tile if row_bytes == 2 and self.states == 16 else 0
        raw = 2 * (row_bytes * (arrays * self.tile * self.channels + terms) + gaps)
        return raw + 4 * terms + 8 * self.channels + 16 * self.tile

    def _channel_rows_bytes(self) -> int:
        """Return the shared memory of place_channel_rows."""
        return 8 * (self.channels * (self.tile + 4) + 8 * self.warps)

    def chunk_bytes(self, row_bytes: int) -> int:
        """Return the dynamic shared memory per block of the kernels in chunks.cu."""
        return self._tile_bytes(row_bytes, 3) + self._channel_rows_bytes() + 64 * self.channels

    def shared_bytes(self, row_bytes: int, backward: bool) -> int:
        """Return the dynamic shared memory per block of scan_forward or scan_backward."""
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
    """Return the layout for N states."""
    return next(layout for layout in LAYOUTS if layout.states >= num_states)


class Cut(NamedTuple):
    """Division of a sequence into chunks that run in parallel, and of chunks into pieces; see `pieces_for`."""

    chunk_tiles: int
    num_chunks: int
    chunk_pieces: int


@functools.cache
def chunks_for(num_blocks: int, num_tiles: int, num_multiprocessors: int, resident_blocks: int) -> tuple[int, int]:
    """Return (tiles per chunk, number of chunks) for a division that fills the GPU.

    Args:
        num_blocks: number of blocks without chunks.
        num_tiles: number of tiles of the sequence.
        num_multiprocessors: number of multiprocessors of the GPU.
        resident_blocks: number of blocks that a multiprocessor runs at the same time.
    """
    room = num_multiprocessors * resident_blocks
    if 2 * num_blocks > room or num_tiles < MIN_CHUNKED_TILES:  # chunks need a second pass over the rows
        return num_tiles, 1
    sizes = {-(-num_tiles // chunks) for chunks in range(1, room // num_blocks + 1)}

    def longest(chunk_tiles: int) -> tuple[int, int]:
        """Return the tiles of the busiest multiprocessor; ties go to shorter chunks, which hide more latency."""
        blocks = num_blocks * -(-num_tiles // chunk_tiles)
        return -(-blocks // num_multiprocessors) * chunk_tiles, chunk_tiles

    chunk_tiles = min(sizes, key=longest)
    return chunk_tiles, -(-num_tiles // chunk_tiles)


def pieces_for(num_blocks: int, chunk_tiles: int, num_chunks: int, num_multiprocessors: int) -> int:
    """Return the number of pieces per chunk for the kernels in chunks.cu, so that they fill the GPU.

    There are up to twice as many blocks as can run at the same time, since many of them finish early.

    Args:
        num_blocks: number of blocks per piece.
        chunk_tiles: number of tiles per chunk.
        num_chunks: number of chunks; one of them needs no pieces, since no other chunk depends on it.
        num_multiprocessors: number of multiprocessors of the GPU.
    """
    room = 2 * CHUNK_BLOCKS * num_multiprocessors
    return max(1, min(chunk_tiles // MIN_PIECE_TILES, room // (num_blocks * max(1, num_chunks - 1))))
