"""Compiles the CUDA C++ of every kernel to cubins with NVRTC, as the CUDA runtime would, and says
what each takes.

    python compile.py TEXTS REPORT [NAME...]

TEXTS is a folder of `sm_ARCH/NAME.cu` as tests/cuda writes it; REPORT is a markdown table to write.
Fails if a text does not compile, or spills more than its head says. With names, only those that
contain one of them are compiled, and Hopper's disassembly lies beside its texts.
"""

import ctypes
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nvidia.cu13

HOME = Path(list(nvidia.cu13.__path__)[0])
# NVRTC opens this by its bare name, which no search path knows.
ctypes.CDLL(str(next((HOME / "lib").glob("libnvrtc-builtins.so.*"))))
NVRTC = ctypes.CDLL(str(HOME / "lib" / "libnvrtc.so.13"))
NVRTC.nvrtcGetErrorString.restype = ctypes.c_char_p
# What cubecl-cuda 0.11.3 passes in `compute/context.rs`, and the report of the assembler.
OPTIONS = [
    f"--include-path={HOME / 'include'}",
    "-lineinfo",
    f"--include-path={HOME / 'include' / 'cccl'}",
    "--ptxas-options=-v",
]


def bytes_of(program, what):
    size = ctypes.c_size_t()
    getattr(NVRTC, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    getattr(NVRTC, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw[: size.value]


def compile_text(path):
    """The cubin, or None, and the log."""
    program = ctypes.c_void_p()
    text = path.read_text()
    status = NVRTC.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), path.name.encode(), 0, None, None
    )
    if status:
        return None, NVRTC.nvrtcGetErrorString(status).decode()
    options = [f"--gpu-architecture={path.parent.name}", *OPTIONS]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = NVRTC.nvrtcCompileProgram(program, len(options), array)
    log = bytes_of(program, "ProgramLog").rstrip(b"\0").decode()
    cubin = None if status else bytes_of(program, "CUBIN")
    NVRTC.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin, log


def number(pattern, text):
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def check(path):
    """What is wrong, and the row of the report, of one text."""
    text = path.read_text()
    cubin, log = compile_text(path)
    if not cubin:
        return f"{path}: does not compile\n{log}", None
    path.with_suffix(".cubin").write_bytes(cubin)
    registers = number(r"Used (\d+) registers", log)
    spilled = number(r"(\d+) bytes spill stores", log)
    if not registers:
        return f"{path}: the assembler did not report registers\n{log}", None
    row = {
        "name": path.stem,
        "arch": path.parent.name,
        "registers": registers,
        "spilled": spilled,
        "shared": number(r"(\d+) bytes smem", log) + number(r"// shared (\d+)", text),
        "units": number(r"// units (\d+)", text) or number(r"__launch_bounds__\((\d+)", text),
        "cubes": (re.search(r"// cubes (\S+)", text) or ["", "the device's"])[1],
    }
    allowed = number(r"// spill (\d+)", text)
    if spilled > allowed:
        return f"{path}: spills {spilled} bytes of a thread, said {allowed}", row
    return None, row


def disassemble(path):
    listing = subprocess.run(
        [HOME / "bin" / "nvdisasm", "-c", path.with_suffix(".cubin")],
        capture_output=True,
        text=True,
    )
    path.with_suffix(".sass").write_text(listing.stdout)


def report(rows):
    arches = sorted({row["arch"] for row in rows}, key=lambda arch: int(re.sub(r"\D", "", arch)))
    lines = [
        "# What the assembler says of every kernel",
        "",
        "Written by `engine/kernels/cube/cuda/check.sh`; do not edit. Registers of a thread, then",
        "bytes it spills where there are any. Shared memory in bytes of a cube, as launched. A name",
        "is an operation at a shape of Super, then the how manieth kernel that it launches.",
        "",
        "| kernel | cubes | units | shared | " + " | ".join(arches) + " |",
        "|---|---|---|---|" + "---|" * len(arches),
    ]
    by_name = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["arch"]] = row
    for name, of_arch in sorted(by_name.items()):
        any_row = next(iter(of_arch.values()))
        cells = []
        for arch in arches:
            row = of_arch.get(arch)
            spilled = f" +{row['spilled']}" if row and row["spilled"] else ""
            cells.append(f"{row['registers']}{spilled}" if row else "-")
        shape = f"{any_row['cubes']} | {any_row['units']} | {any_row['shared']}"
        lines.append(f"| {name} | {shape} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    texts, target, only = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    paths = sorted(texts.glob("sm_*/*.cu"))
    if only:
        paths = [path for path in paths if any(name in path.stem for name in only)]
    if not paths:
        sys.exit(f"no texts in {texts}")
    # NVRTC compiles in parallel; ctypes lets go of the interpreter meanwhile.
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(check, paths))
    wrong = [fault for fault, _ in results if fault]
    rows = [row for _, row in results if row]
    target.write_text(report(rows))
    print("\n".join(wrong) or f"ok     {len(rows)} cubins of {len({r['name'] for r in rows})} kernels")
    for path in paths:
        if only and path.parent.name == "sm_90a" and path.with_suffix(".cubin").exists():
            disassemble(path)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
