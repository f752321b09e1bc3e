"""Videos that tests write: lossless ones, and the oddities of real files."""

from fractions import Fraction
from itertools import islice

import av
import numpy as np

START_CODE = b"\0\0\1\xb6"  # of an mpeg4 picture


def pictures(num_frames, width=48, height=32):
    """Return (num_frames, height, width, 3) noise with a bar that moves, uint8."""
    frames = np.random.default_rng(0).integers(0, 200, (num_frames, height, width, 3), dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[:, number % width] = 255
    return frames


def write(path, frames, codec="ffv1", pix_fmt="bgr0", rate=Fraction(25), gop_size=8, num_b_frames=0):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"threads": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop_size
        stream.codec_context.max_b_frames = num_b_frames
        for frame in [*(av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames), None]:
            container.mux(stream.encode(frame))
    return path


def decoded(path, *chosen):
    """Return all frames, or those of `range(*chosen)`, decoding from the first on."""
    with av.open(str(path)) as container:
        frames = islice(container.decode(video=0), *(chosen or (None,)))
        return [frame.to_ndarray(format="rgb24") for frame in frames]


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def kind(packet):
    """Return I, P or B, the first picture of an mpeg4 packet."""
    return "IPBS"[packet[packet.index(START_CODE) + 4] >> 6]


def nothing_coded(num_time_bits=5):
    """Return the mpeg4 picture that stands for one left out, or packed into the packet before it."""
    bits = "01" + "0" + "1" + "0" * num_time_bits + "1" + "0"
    bits += "0" + "1" * (-len(bits + "0") % 8)
    return START_CODE + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def packed(source):
    """Pack each B-frame into the packet of the frame coded before it, as DivX did: lists the packets."""
    result, waiting = [], packets(source)
    while waiting:
        packet = waiting.pop(0)
        if waiting and kind(packet) != "B" and kind(waiting[0]) == "B":
            result += [packet + waiting.pop(0), nothing_coded()]
        else:
            result.append(packet)
    # Decoders look for this mark in the first packet, before its first group of pictures.
    place = result[0].index(b"\0\0\1\xb3")
    result[0] = result[0][:place] + b"\0\0\1\xb2DivX503b1393p\0" + result[0][place:]
    return result


def mux(path, contents, codec, like):
    """Write given packets, one a frame, with the size of the video `like`."""
    with av.open(str(like)) as source, av.open(str(path), "w") as container:
        size = source.streams.video[0]
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = size.width, size.height, size.pix_fmt
        for number, content in enumerate(contents):
            packet = av.Packet(content)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            packet.is_keyframe = codec == "mjpeg" or kind(content) == "I"
            container.mux(packet)
    return path
