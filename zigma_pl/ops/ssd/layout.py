"""Division of the work of the CUDA kernels of SSD: head channels among blocks, long sequences into pieces."""

from dataclasses import dataclass

MAX_STATES = 128
HEAD_DIMS = (32, 64, 128)
ROOMY_BYTES = 160 * 1024  # shared memory of a block from which on larger slices fit
# Least chunks of a piece. Single chunks are faster in the forward pass on an H200, and were not measured in the other.
FORWARD_PIECE_CHUNKS, BACKWARD_PIECE_CHUNKS = 1, 2


@dataclass(frozen=True)
class Layout:
    """Sizes of the tiles of a block; see walk.cu.

    Args:
        item_bytes: bytes of an item of a tile: 2 (bfloat16) or 4 (float32).
        tokens: tokens per chunk.
        num_states: N.
        states: N, padded.
        slice: channels of a head per block.
        slices: blocks per head.
        stages: buffers for chunks in the forward pass; with 2, copies overlap with computation.
        forward_blocks, backward_blocks: minimum number of blocks per multiprocessor, which limits the registers.
    """

    item_bytes: int
    tokens: int
    num_states: int
    states: int
    slice: int
    slices: int
    stages: int = 2
    forward_blocks: int = 3
    backward_blocks: int = 3

    @property
    def threads(self) -> int:
        """Threads per block: a warp for 16 tokens."""
        return 2 * self.tokens

    def num_chunks(self, num_tokens: int) -> int:
        """Return the number of chunks for L tokens."""
        return -(-num_tokens // self.tokens)

    @property
    def _common_bytes(self) -> int:
        return 68 * self.tokens

    @property
    def forward_bytes(self) -> int:
        """Shared memory of a block in the forward pass, struct Front in forward.cu."""
        chunk = self.tokens * (self.slice + 2 * self.states)
        return self._common_bytes + self.item_bytes * (self.states * self.slice + self.stages * chunk)

    @property
    def backward_bytes(self) -> int:
        """Shared memory of a block in the backward pass, struct Back in adjoints.cu."""
        warps = self.tokens // 16
        sums = 4 * ((warps + 4) * self.tokens + 2 * warps)
        chunk = self.tokens * 2 * (self.slice + self.states + self.tokens)
        states = self.states * self.slice + max(self.states, self.tokens) * self.slice
        return self._common_bytes + sums + self.item_bytes * (states + chunk)


def layout_for(num_states: int, head_dim: int, item_bytes: int, shared_bytes: int) -> Layout:
    """Return the layout for N states, heads of P channels, and a GPU whose blocks have this much shared memory."""
    states = next(size for size in (32, 64, MAX_STATES) if size >= num_states)
    if item_bytes == 4:
        return Layout(4, 32, num_states, states, 32, head_dim // 32, stages=1, forward_blocks=2, backward_blocks=1)
    widest = 32 if states == MAX_STATES and shared_bytes < ROOMY_BYTES else 64
    size = min(head_dim, widest)
    blocks = 2 if states == MAX_STATES else 3
    return Layout(2, 64, num_states, states, size, head_dim // size, forward_blocks=blocks, backward_blocks=blocks)


def kept_state_bytes(num_states: int, item_bytes: int) -> float:
    """Return the bytes of states that are kept for the backward pass, for each token and channel of the heads."""
    layout = layout_for(min(num_states, MAX_STATES), HEAD_DIMS[0], item_bytes, ROOMY_BYTES)
    return item_bytes * layout.states / layout.tokens


def pieces_for(
    num_blocks: int, num_chunks: int, num_multiprocessors: int, resident_blocks: int, least_chunks: int
) -> int:
    """Return the number of pieces of a sequence that run in parallel.

    Args:
        num_blocks: number of blocks without pieces.
        num_chunks: chunks of the sequence.
        num_multiprocessors: multiprocessors of the GPU.
        resident_blocks: blocks that a multiprocessor runs at the same time.
        least_chunks: least number of chunks of a piece.
    """
    room = num_multiprocessors * resident_blocks
    return max(1, min(room // num_blocks, num_chunks // least_chunks))


def carry_parts_for(num_pieces: int, piece_chunks: int) -> int:
    """Return the number of parts into which the kernel that computes the state between pieces divides each piece.

    Of two pieces it uses one only, so that two parts of it fill the GPU as the pieces do.

    Args:
        num_pieces: pieces of a sequence.
        piece_chunks: chunks of a piece.
    """
    return 2 if num_pieces == 2 and piece_chunks >= 4 else 1
