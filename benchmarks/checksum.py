"""Checksum speed: GB per processor second over blocks in cache, and from memory.

    python benchmarks/checksum.py [--block-kib 2048] [--rounds 7] [--seconds 0.1]

Compares CRC32C by the processor's instruction with XXH3 as the core builds it (and with AVX-512,
which the core does not use). x86-64 only. Neve's choice: docs/decisions/002-native-core.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "connector/src/core"
# The core's builds of XXH3 and one with AVX-512, with the CPU flags that each needs.
KERNELS = {
    "base": ("#define NEVE_KERNEL kBaseKernel", ()),
    "avx2": ("#define NEVE_KERNEL kAvx2Kernel", ("-mavx2",)),
    "avx512": ("#define NEVE_KERNEL kAvx512Kernel", ("-mavx512f",)),
}
DECLARATION = "namespace neve { extern const ChecksumKernel kAvx512Kernel; }"


def compile_program(folder: Path) -> Path:
    common = ("c++", "-std=c++20", "-O3", "-DNEVE_AVX2", f"-I{CORE}")
    objects = []
    for name, (define, flags) in KERNELS.items():
        source, built = folder / f"{name}.cpp", folder / f"{name}.o"
        lines = (
            '#include "checksum_kernel.h"',
            DECLARATION,
            define,
            f'#define NEVE_KERNEL_NAME "{name}"',
            '#include "checksum_kernel.inc"',
        )
        source.write_text("\n".join(lines) + "\n")
        subprocess.run([*common, *flags, "-c", source, "-o", built], check=True)
        objects.append(built)
    program = folder / "checksum"
    source = ROOT / "benchmarks/checksum.cpp"
    subprocess.run([*common, source, *objects, "-o", program], check=True)
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--block-kib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(Path(folder))
        sizes = (options.block_kib << 10, options.rounds, options.seconds)
        answer = subprocess.run(
            [program, *map(str, sizes)], check=True, stdout=subprocess.PIPE, text=True
        )
    rows: dict[str, dict[str, list[float]]] = json.loads(answer.stdout)
    places = list(next(iter(rows.values())))
    print(f"{options.block_kib} KiB, GB per processor second, load {os.getloadavg()[0]:.1f}")
    print(f"{'':22}" + "".join(f"{place:>24}" for place in places))
    for name, speeds in rows.items():
        cells = (
            f"{statistics.median(each):8.1f} ({min(each):5.1f} to {max(each):5.1f})"
            for each in speeds.values()
        )
        print(f"{name:22}" + "".join(f"{cell:>24}" for cell in cells))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "checksum.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
