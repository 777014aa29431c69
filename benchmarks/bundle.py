"""Makes a folder that runs the benchmarks on a host without package registries.

    python benchmarks/bundle.py FOLDER [--python 3.12] [--build-python PATH] [--perf] [--cold]

That host needs only Linux on x86-64 and Python of the given version. The folder contains
valkey-server and valkey-cli with their libraries and loader, raw.c built statically, wheels of the
clients, neve with its built core (its sources, to build there, if this machine lacks that Python),
LMCache's client (which needs a torch on the host) and these scripts. With `--cold` it carries what
ttft needs to read from S3 as well, weed (packed; needs openssl on the host) and boto3, in place of
the peers and of what comes with vLLM. On the host:

    FOLDER/run.sh check                     a minute: checks the folder, describes the host
    FOLDER/run.sh datapath [ARGUMENTS]      benchmarks/datapath.py
    FOLDER/run.sh first_touch | sockets     the other benchmarks
    FOLDER/run.sh ttft --modes hot cold     --cold; PYTHON: an interpreter that has vLLM

Results go to $OUT, or to FOLDER/out. `benchmarks/report.py` draws the plot from the JSON later.
"""

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 60 << 20
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
WHEELS = (
    *("numpy", "urllib3", "xxhash", "valkey", "libvalkey", "valkey-glide-sync"),
    *("cffi", "pycparser", "protobuf", "typing_extensions"),
)
# With what starts weed, and speaks to it.
COLD_WHEELS = (
    *("urllib3", "xxhash", "valkey", "typing_extensions", "boto3", "botocore", "s3transfer"),
    *("jmespath", "python-dateutil", "six", "psutil", "python-dotenv"),
)
COLD_FILES = (
    *("tests/support/servers.py", "deploy/installation.py"),
    *("deploy/weed", "deploy/weed-keys"),
)
FILES = (
    *("benchmarks/*.py", "benchmarks/raw.c", "tests/support/__init__.py"),
    *("tests/support/cache_endpoint.py", "tests/support/certificates.py"),
    *("deploy/valkey-hot", "deploy/valkey-hot.conf", "deploy/congestion.py"),
)
RUN = """\
#!/bin/sh
# Runs a benchmark of this bundle; benchmarks/bundle.py says how.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
out=${OUT:-$here/out}
site=${NEVE_BENCH_SITE:-${TMPDIR:-/tmp}/bench-site}
mkdir -p "$out" "$site"
if [ ! -e "$site/.ready" ]; then
    for wheel in "$here"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
    if [ -d "$here/connector" ]; then
        "$python" -m pip install -q --no-deps --no-index --no-build-isolation \\
            --target "$site" "$here/connector"
    fi
    if [ -e "$here/weed.xz" ]; then
        mkdir -p "$site/bin"
        "$python" -c "import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), \
            open(sys.argv[2], 'wb'))" "$here/weed.xz" "$site/bin/weed"
        chmod 755 "$site/bin/weed"
    fi
    touch "$site/.ready"
fi
export PATH="$here/bin:$site/bin:$PATH" PYTHONPATH="$site" NEVE_BENCH_RAW="$here/bin/raw"
what=${1:-check}
[ $# = 0 ] || shift
clients="--peer-python $python --torch-python $python --lmcache $here/lmcache --out $out"
case $what in
check)
    uname -sr; nproc; grep -E 'MemTotal|MemAvailable' /proc/meminfo
    grep -m 1 'model name' /proc/cpuinfo || true
    "$python" -VV; ldd --version 2>&1 | head -n 1
    echo "huge pages: $(cat /sys/kernel/mm/transparent_hugepage/enabled)"
    cd /proc/sys/net
    for name in ipv4/tcp_congestion_control ipv4/tcp_allowed_congestion_control \\
        ipv4/tcp_rmem ipv4/tcp_wmem core/rmem_max core/wmem_max; do
        echo "$name: $(cat $name 2>/dev/null || echo not here)"
    done
    cd /
    valkey-server --version
    for module in neve._core numpy valkey libvalkey glide_sync torch; do
        "$python" -c "import $module; print('$module', 'is there')" 2>&1 | tail -n 1
    done
    "$python" "$here/repo/benchmarks/datapath.py" $clients --primaries 1 --blocks-kib 2048 \\
        --rounds 1 --seconds 0.1 --data-mib 64
    ;;
datapath) exec "$python" "$here/repo/benchmarks/datapath.py" $clients "$@" ;;
*) exec "$python" "$here/repo/benchmarks/$what.py" --out "$out" "$@" ;;
esac
"""
START = """\
#!/bin/sh
here=$(cd "$(dirname "$0")/.." && pwd)
exec "$here/lib/ld.so" --library-path "$here/lib" "$here/libexec/{name}" "$@"
"""


def run(*words: str | Path) -> str:
    """Run a program; return its stdout, pass on its stderr. Raises CalledProcessError."""
    command = [str(word) for word in words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def copy_program(name: str, folder: Path) -> None:
    """Copy a program with all its libraries and the loader: the host's C library may be older."""
    program = shutil.which(name)
    if program is None:
        raise SystemExit(f"{name} is not installed here: deploy/get valkey")
    for part in ("bin", "lib", "libexec"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    real = Path(program).resolve()
    shutil.copy(real, folder / "libexec" / name)
    for line in run("ldd", real).splitlines():
        found = re.search(r"(/\S+) \(0x", line)
        if found is None:
            continue
        library = Path(found[1])
        is_loader = library.name.startswith("ld-linux")
        shutil.copy(library.resolve(), folder / "lib" / ("ld.so" if is_loader else library.name))
    start = folder / "bin" / name
    start.write_text(START.format(name=name))
    start.chmod(0o755)


def pack_weed(folder: Path) -> None:
    """weed is one static program of 150 MB; packed, it is a quarter of that."""
    program = ROOT / ".venv/bin/weed"
    found = program if program.exists() else shutil.which("weed")
    if found is None:
        raise SystemExit("weed is not installed here: make install")
    with Path(found).open("rb") as source, lzma.open(folder / "weed.xz", "wb", preset=6) as packed:
        shutil.copyfileobj(source, packed, 1 << 20)


def keep_s3(folder: Path) -> None:
    """Drops all services but S3 from botocore's wheel: fifteen of its sixteen MB."""
    (wheel,) = folder.glob("botocore-*.whl")
    slim = wheel.with_suffix(".slim")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as kept:
        for name in whole.namelist():
            if not re.match(r"botocore/data/(?!s3/)[^/]+/", name):
                kept.writestr(name, whole.read(name))
    slim.replace(wheel)


def pinned() -> dict[str, str]:
    """Name → `name==version`, from our requirement files."""
    pins = {}
    for path in (ROOT / "requirements.txt", ROOT / "benchmarks/requirements.txt"):
        for line in path.read_text().splitlines():
            if found := re.match(r"([\w.-]+)==\S+", line):
                pins[found[1].lower()] = found[0]
    return pins


def download(requirement: str, python: str, folder: Path) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"),
        *("--no-deps", "--only-binary=:all:", "--implementation", "cp"),
        *("--python-version", python, *platforms, "--dest", folder, requirement),
    )  # fmt: skip


def take_lmcache(requirement: str, python: str, folder: Path) -> None:
    """Take only the RESP client from LMCache's wheel: the rest needs an engine."""
    with tempfile.TemporaryDirectory() as scratch:
        download(requirement, python, Path(scratch))
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if re.fullmatch(r"lmcache/lmcache_redis\..*\.so", name):
                    archive.extract(name, folder)


def works(interpreter: str | None, python: str) -> bool:
    """Whether `interpreter` runs and has that version. A shim may exist and fail."""
    if interpreter is None:
        return False
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == python


def add_neve(python: str, interpreter: str | None, folder: Path) -> None:
    if works(interpreter, python):
        assert interpreter is not None
        run(
            *(interpreter, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"),
            *("--no-deps", "--wheel-dir", folder / "wheels", ROOT / "connector"),
        )  # fmt: skip
        return
    print(f"No Python {python} here: the bundle has neve's sources, built at the first run.")
    ignore = shutil.ignore_patterns("build", "__pycache__", "tests", "fuzz")
    shutil.copytree(ROOT / "connector", folder / "connector", ignore=ignore)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version on the host")
    parser.add_argument("--build-python", help="an interpreter of that version; else on PATH")
    parser.add_argument("--without", nargs="*", default=[], help="wheels that the host has")
    parser.add_argument("--perf", action="store_true", help="take perf along")
    parser.add_argument("--cold", action="store_true", help="weed and boto3, no peers")
    options = parser.parse_args()
    folder: Path = options.folder
    if folder.exists() and any(folder.iterdir()) and not (folder / "run.sh").exists():
        raise SystemExit(f"{folder} holds something else")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("valkey-server", "valkey-cli", *(["perf"] if options.perf else [])):
        copy_program(name, folder)
    raw = folder / "bin/raw"
    source = ROOT / "benchmarks/raw.c"
    run("cc", "-std=gnu11", "-O2", "-static", "-pthread", source, "-o", raw)
    (folder / "wheels").mkdir()
    pins = pinned()
    for name in COLD_WHEELS if options.cold else WHEELS:
        if name not in options.without and name in pins:
            download(pins[name], options.python, folder / "wheels")
    if options.cold:
        keep_s3(folder / "wheels")
        pack_weed(folder)
    else:
        take_lmcache(pins["lmcache"], options.python, folder / "lmcache")
    add_neve(
        options.python, options.build_python or shutil.which(f"python{options.python}"), folder
    )
    for pattern in FILES + (COLD_FILES if options.cold else ()):
        for path in sorted(ROOT.glob(pattern)):
            target = folder / "repo" / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    script = folder / "run.sh"
    script.write_text(RUN)
    script.chmod(0o755)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / (1 << 20):.1f} MiB")
    if size > MOST_BYTES:
        raise SystemExit(f"more than {MOST_BYTES >> 20} MiB: leave wheels out with --without")


if __name__ == "__main__":
    main()
