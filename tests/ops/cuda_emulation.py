"""Replacement for `zigma_pl.ops.nvrtc.load` that compiles the same kernels with g++ and runs them on CPU tensors."""

import ctypes
import functools
import hashlib
import subprocess
from pathlib import Path

HEADER = Path(__file__).with_name("cuda_emulation.h")


class Emulator:
    """load(...) has the signature of nvrtc.load; compiled libraries are stored in folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launched: list[str] = []
        self.library = functools.cache(self._compile)

    def load(self, sources, name, options, *, threads, shared_bytes, num_fields, device, carveout=100):
        library = self.library(sources, options)

        def launch(grid, fields):
            assert len(fields) == num_fields
            self.launched.append(name)
            packed = (ctypes.c_longlong * num_fields)(*fields)
            assert library.field_bytes() == ctypes.sizeof(packed)
            getattr(library, f"emulate_{name}")(packed, *grid, threads, shared_bytes)

        return launch

    def _compile(self, sources, options):
        kernels = "\n".join(path.read_text() for path in sources)
        names = [
            line.split("(const Params")[0].split()[-1]
            for line in kernels.splitlines()
            if "(const Params p) {" in line and 'extern "C"' in line
        ]
        entries = "".join(
            f'extern "C" void emulate_{name}(const Params* p, int x, int y, int z, int threads, int shared) '
            f"{{ params = p; launch([] {{ {name}(*params); }}, {{x, y, z}}, threads, shared); }}\n"
            for name in names
        )
        tail = f'static const Params* params;\nextern "C" int field_bytes() {{ return sizeof(Params); }}\n{entries}'
        source = f'#include "{HEADER}"\n{kernels}\n{tail}'
        flags = ["-std=c++14", "-Og", "-w", "-shared", "-fPIC", *(f"-D{macro}={value}" for macro, value in options)]
        stem = self.folder / hashlib.sha256("\0".join([source, HEADER.read_text(), *flags]).encode()).hexdigest()[:20]
        if not stem.with_suffix(".so").exists():
            stem.with_suffix(".cpp").write_text(source)
            subprocess.run(
                ["g++", *flags, str(stem.with_suffix(".cpp")), "-o", str(stem.with_suffix(".so"))], check=True
            )
        return ctypes.CDLL(str(stem.with_suffix(".so")))
