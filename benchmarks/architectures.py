"""Every architecture on real engines with Neve: works or is refused, and why (docs/models.md).

    python benchmarks/architectures.py [--only gemma3 gptoss] [--out var/bench/architectures]
    python benchmarks/architectures.py --sizes  # only the engine's KV beside the planner's

Each has a tiny checkpoint (tests/vllm/make_architectures.py), a reference without Neve, an engine
that stores, and engines of another process that load. A row counts tokens and logprobs that differ
from the reference. Rows are written to `--out` as they end, so a run may be repeated in parts.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "platform")]

from neve.formats.block import HEADER_BYTES  # noqa: E402
from neve.formats.ids import BlockHasher  # noqa: E402
from neve.formats.parts import block_bytes_per_token  # noqa: E402
from neve.formats.segment import read_footer  # noqa: E402
from neve.formats.space import choose_chunk_tokens  # noqa: E402
from neve.planner.parts import loaded_bytes, stored_bytes  # noqa: E402
from support.kv_sizes import engine_sizes, parts_of, planned_sizes  # noqa: E402
from support.servers import ControlPlane, S3Server  # noqa: E402
from support.vllm_engine import SCRIPTS, EngineProcess, engine_environment  # noqa: E402

CHUNK: Final = 64
LONGEST: Final = 2048
KV_BYTES: Final = 64 << 20
STEP_TOKENS: Final = 512  # longer prompts are computed in pieces
# Llama 4's chunked local attention in groups of its own, which vLLM leaves off by default.
ENVIRONMENT: Final = {"VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "1"}
# What an architecture needs beside the common options.
ENGINE: Final[dict[str, dict[str, Any]]] = {
    "qwen3next": {"dtype": "bfloat16", "enable_prefix_caching": True},
    "lfm2": {"enable_prefix_caching": True},
    "jamba": {"enable_prefix_caching": True},
    "mamba2": {"enable_prefix_caching": True},
    "granite-hybrid": {"enable_prefix_caching": True},
}
SPACE: Final = """
import json
from catalog.models import Space
row = Space.unscoped.filter(identity__model="{model}").order_by("-pk").first()
print(json.dumps([row.pk, row.fingerprint, row.chunk_tokens, row.identity["bytes_per_token"]]))
"""


def words(seed: str, count: int) -> list[int]:
    return random.Random(seed).choices(range(256), k=count)


def ask(tokens: list[int], max_tokens: int = 12) -> dict[str, Any]:
    return {"tokens": tokens, "max_tokens": max_tokens, "params": {"neve": {}}}


SHARED: Final = words("shared", 600)
PROMPTS: Final = {
    "shared a": SHARED + words("a", 77),
    "shared b": SHARED + words("b", 200),
    "long": words("long", 1100),
    "whole chunks": words("exact", 512),
    "short": words("short", 40),
}
MEASURED: Final = ("gemma3", "gptoss", "qwen3next")  # memory of their engines
TALK: Final = words("talk", 300)
# Their prompts take 8 engine blocks of full attention each, with their answers 11, of some 64.
CROWD: Final = [words(f"crowd {n}", 250) for n in range(9)]
# One for each KV cache group, whose stored bytes get damaged. 320 tokens of it are loaded, so that
# chunked local attention of 128 tokens reads some as well.
DOOMED: Final = [words(f"doomed {n}", 340) for n in range(8)]


@dataclass
class Answers:
    """Of one scenario beside the reference."""

    asked: int
    same_tokens: int
    worst_logprob: float
    loaded_tokens: int
    preemptions: int = 0

    @property
    def exact(self) -> bool:
        return self.same_tokens == self.asked


@dataclass
class Row:
    """One architecture. `why`: of a refusal, or of an architecture that this build does not run."""

    architecture: str
    state: str = "unfinished"  # works, refused, differs, not run
    why: str = ""
    groups: list[dict[str, Any]] = field(default_factory=list)
    all_layers_bytes: int = 0  # of one token, as the space says
    engine: dict[str, float] = field(default_factory=dict)  # see support.kv_sizes
    planned: dict[str, float] = field(default_factory=dict)
    stored_bytes: float = 0.0  # of one token, in Valkey
    expected_bytes: float = 0.0  # of one token, by the KV cache groups
    answers: dict[str, Answers] = field(default_factory=dict)
    damage: dict[str, str] = field(default_factory=dict)
    took_s: float = 0.0


class Lab:
    """A platform, and two processes: the first computes and stores, the second only loads."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        python: Path,
        names: Sequence[str],
        *,
        has_platform: bool = True,
    ) -> None:
        self._stack, self._folder, self.python = stack, folder, python
        folder.mkdir(parents=True, exist_ok=True)
        if has_platform:
            self.s3 = stack.enter_context(S3Server(folder / "s3"))
            self.platform = stack.enter_context(ControlPlane(folder / "platform", self.s3))
        self.models = folder / "models"
        command = [
            str(python),
            str(SCRIPTS / "make_architectures.py"),
            str(self.models),
            *{*names, *MEASURED},
        ]
        subprocess.run(command, check=True, env=engine_environment(), stdout=sys.stderr)
        self._processes: dict[str, EngineProcess] = {}

    def process(self, which: str) -> EngineProcess:
        if which not in self._processes:
            log = self._folder / f"{which}.log"
            made = EngineProcess(self.python, self.models, log, **ENVIRONMENT)
            self._processes[which] = self._stack.enter_context(made)
        return self._processes[which]

    def forget(self) -> None:
        """After a failure: the next architecture begins with fresh processes."""
        for process in self._processes.values():
            process.__exit__()
        self._processes.clear()

    def neve(self, **more: Any) -> dict[str, Any]:
        own = {
            "endpoint": self.platform.url, "api_key": self.platform.node_key, "load": "always",
            "canary": 0, "max_chunk_tokens": CHUNK, "match_deadline_s": 10, "load_deadline_s": 60,
        }  # fmt: skip
        return own | more


class Architecture:
    """One architecture's run."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab, self.row = lab, Row(name)
        self._model = lab.models / name
        self._own = ENGINE.get(name, {})
        self._keeps_states = bool(self._own.get("enable_prefix_caching"))
        self._reference: dict[str, Any] = {}

    def run(self) -> Row:
        began = time.monotonic()
        try:
            self._run()
        except (RuntimeError, OSError, ValueError) as error:
            traceback.print_exc()
            self._lab.forget()
            lines = str(error).strip().splitlines() or [""]
            not_run = not self._reference
            self.row.state = "not run" if not_run else "failed"
            self.row.why = lines[-1][:300] if not_run else str(error)[-300:]
        self.row.took_s = round(time.monotonic() - began, 1)
        return self.row

    def _run(self) -> None:
        row, first, second = self.row, self._lab.process("first"), self._lab.process("second")
        self._start(first, None)
        engine = first.ask("describe")
        row.groups = engine["groups"]
        self._compare_sizes(engine)
        self._ask_all(first, "reference", crowd=True)
        self._stop(first)

        seen = len(first.log.read_text())
        self._start(first, self._lab.neve(load="auto"))
        self._ask_all(first, "auto, empty store")
        said = first.log.read_text()[seen:]
        refusal = reason(said)
        if refusal is not None:
            self._stop(first)
            row.why = refusal
            self._check("refused")
            return
        first.ask("store_all")
        self._ask_all(first, "auto")
        first.ask("store_all")
        self._stop(first)
        self._measure_store()

        # Memory for one request of the greatest length, and the null block.
        tight = 1 + sum(group["request_blocks"] for group in row.groups)
        tight_bytes = tight * -(-KV_BYTES // engine["blocks"])
        self._start(second, self._lab.neve())
        self._ask_all(second, "fresh process")
        self._damage_valkey(second)
        second.ask("store_all")
        self._stop(second)

        options = {"enable_prefix_caching": True, "kv_cache_memory_bytes": tight_bytes}
        self._start(second, self._lab.neve(), **options)
        self._ask_all(second, "prefix caching", crowd=True)
        self._stop(second)

        platform = self._lab.platform
        platform.manage("flush_blocks")
        platform.hot.wipe()
        platform.manage("rebuild_index")
        self._damage_s3()
        self._start(second, self._lab.neve())
        self._ask_all(second, "S3 only")
        self._ask_doomed(second, "S3", range(self._groups()))
        self._stop(second)
        platform.hot.wipe()
        self._check("works")

    def _check(self, fine: str) -> None:
        exact = all(answers.exact for answers in self.row.answers.values())
        missed = all(said == "missed, tokens right" for said in self.row.damage.values())
        sizes = self._keeps_states or self.row.stored_bytes == self.row.expected_bytes
        sizes = sizes and self.row.engine == self.row.planned
        self.row.state = fine if exact and missed and sizes else "differs"

    def sizes(self) -> Row:
        """An engine without Neve is started, and its KV compared with the planner's."""
        process = self._lab.process("first")
        try:
            self._start(process, None)
            engine = process.ask("describe")
            self.row.groups = engine["groups"]
            self._stop(process)
            self._compare_sizes(engine)
        except RuntimeError as error:
            self._lab.forget()
            self.row.why = (str(error).strip().splitlines() or [""])[-1][:300]
        return self.row

    def _compare_sizes(self, engine: dict[str, Any]) -> None:
        row = self.row
        config = json.loads((self._model / "config.json").read_text())
        row.engine = engine_sizes(engine)
        try:
            row.planned = planned_sizes(config, engine, dtype=self._own.get("dtype", "float32"))
        except ValueError as error:
            row.why = f"planner: {error}"

    def _start(self, process: EngineProcess, neve: dict[str, Any] | None, **more: Any) -> None:
        common = {
            "max_model_len": LONGEST, "max_num_batched_tokens": STEP_TOKENS,
            "kv_cache_memory_bytes": KV_BYTES, "enable_prefix_caching": False,
        }  # fmt: skip
        process.start(neve, model=str(self._model), engine=common | self._own | more)

    def _stop(self, process: EngineProcess) -> None:
        process.ask("stop")

    def _ask_all(self, process: EngineProcess, scenario: str, *, crowd: bool = False) -> None:
        """The script of every scenario: prompts one by one, a conversation of two turns, and with
        `crowd` nine requests at once, which preempt each other in a small memory."""
        asked = {name: ask(tokens) for name, tokens in PROMPTS.items()}
        asked["turn 1"] = ask(TALK)
        if scenario.endswith("empty store"):  # stored now, read once they are damaged
            asked |= {f"doomed {n}": ask(tokens) for n, tokens in enumerate(self._doomed())}
        outputs = {}
        for name, request in asked.items():
            if self._keeps_states:  # the engine's own hits would move the edges of its steps
                process.ask("forget_prefixes")
            (outputs[name],) = process.generate(request)
        before = self._reference.get("turn 1", outputs["turn 1"])["tokens"]
        (outputs["turn 2"],) = process.generate(ask(TALK + before + words("turn 2", 90)))
        if crowd:
            answers = process.generate(*(ask(tokens, 80) for tokens in CROWD))
            outputs |= {f"crowd {n}": answer for n, answer in enumerate(answers)}
        if scenario == "reference":
            self._reference = outputs
            for n, tokens in enumerate(self._doomed()):
                (outputs[f"doomed {n}"],) = process.generate(ask(tokens))
            return
        found = compare(outputs, self._reference)
        if crowd:
            found.preemptions = int(process.ask("counters").get("num_preemptions", 0))
        self.row.answers[scenario] = found

    def _doomed(self) -> list[list[int]]:
        return DOOMED[: self._groups()]

    def _groups(self) -> int:
        return max(1, len(self.row.groups))

    # ---- the store

    def _measure_store(self) -> None:
        """Bytes a token in Valkey, beside those that the KV cache groups and the planner tell."""
        row, platform = self.row, self._lab.platform
        asked = SPACE.format(model=self._model.name)
        self._space, fingerprint, chunk, row.all_layers_bytes = json.loads(
            platform.manage("shell", "-v", "0", "-c", asked)
        )
        self._hasher = BlockHasher(bytes.fromhex(fingerprint), chunk)
        texts = list(PROMPTS.values()) + self._doomed()
        texts = [[*text, *self._said(n)] for n, text in zip(self._names(), texts, strict=True)]
        turn = TALK + self._reference["turn 1"]["tokens"] + words("turn 2", 90)
        texts.append([*turn, *self._said("turn 2")])
        chunks = {id_ for text in texts for id_ in self._chain(text)}
        with platform.hot.client() as client:
            keys = self._keys(client)
            stored = sum(client.strlen(key) - HEADER_BYTES for key in keys.values())
        row.stored_bytes = round(stored / len(chunks) / chunk, 3)
        row.expected_bytes = round(stored_bytes(parts_of(row.groups, LONGEST), chunk).per_token, 3)

    def _names(self) -> list[str]:
        return [*PROMPTS, *(f"doomed {n}" for n in range(self._groups()))]

    def _said(self, name: str) -> list[int]:
        """The answer's tokens that were computed: the last one was not."""
        return list(self._reference[name]["tokens"][:-1])

    def _chain(self, tokens: list[int]) -> list[bytes]:
        return self._hasher.chain(tokens, parent=self._hasher.root())

    def _keys(self, client: Any) -> dict[bytes, bytes]:
        mark = f":b:{self._space}:".encode()
        return {key[-16:]: key for key in client.scan_iter(count=1000) if mark in key}

    def _parts(self, number: int) -> set[bytes]:
        """Ids of the blocks of one KV cache group, of the prompt that is its own."""
        chain = self._chain(DOOMED[number])
        return {self._hasher.of_groups(id_, self._groups())[number] for id_ in chain}

    def _damage_valkey(self, process: EngineProcess) -> None:
        with self._lab.platform.hot.client() as client:
            keys = self._keys(client)
            damaged = []
            for number in range(self._groups()):
                found = [keys[id_] for id_ in self._parts(number) if id_ in keys]
                for key in found:
                    at = HEADER_BYTES + (client.strlen(key) - HEADER_BYTES) // 2
                    old = client.getrange(key, at, at)
                    client.setrange(key, at, bytes([old[0] ^ 1]))
                if found:
                    damaged.append(number)
        self._ask_doomed(process, "Valkey", damaged)

    def _damage_s3(self) -> None:
        client, bucket = self._lab.s3.client(), self._lab.platform.bucket
        doomed = {id_ for number in range(self._groups()) for id_ in self._parts(number)}
        for item in client.list_objects_v2(Bucket=bucket).get("Contents", ()):
            if not item["Key"].endswith(".seg"):
                continue
            raw = bytearray(client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
            footer = read_footer(lambda at, size, raw=raw: bytes(raw[at : at + size]), len(raw))
            hit = [each for each in footer.rows if each.id in doomed]
            for each in hit:
                raw[each.offset + HEADER_BYTES + (each.length - HEADER_BYTES) // 2] ^= 1
            if hit:
                client.put_object(Bucket=bucket, Key=item["Key"], Body=bytes(raw))

    def _ask_doomed(self, process: EngineProcess, place: str, groups: Iterable[int]) -> None:
        """Prompts of which one bit of every block of one group is flipped."""
        for number in groups:
            (answer,) = process.generate(ask(DOOMED[number]))
            right = answer["tokens"] == self._reference[f"doomed {number}"]["tokens"]
            loaded = answer["params"]["neve"]["reused_tokens"]
            said = "missed" if loaded == 0 else f"{loaded} tokens loaded"
            said += ", tokens right" if right else ", tokens wrong"
            self.row.damage[f"{place}, group {number}"] = said


def reason(log: str) -> str | None:
    """Why the engine that wrote `log` is served without Neve; None if it isn't."""
    line = r"neve\.(?:unsupported|unidentified) detail=([\"'])(.*?)\1 \("
    found = re.search(line, log)
    return found[2] if found else None


def compare(outputs: dict[str, Any], reference: dict[str, Any]) -> Answers:
    """Of every logprob that both sides name; the last of the top three may be a tie."""
    found = Answers(len(outputs), 0, 0.0, 0)
    for name, output in outputs.items():
        wanted = reference[name]
        found.same_tokens += output["tokens"] == wanted["tokens"]
        told = (output["params"] or {}).get("neve", {})
        found.loaded_tokens += told.get("reused_tokens", 0)
        for step, other in zip(output["logprobs"], wanted["logprobs"], strict=True):
            for token in step.keys() & other.keys():
                found.worst_logprob = max(found.worst_logprob, abs(step[token] - other[token]))
    return found


# ---- the table


def describe(groups: Sequence[dict[str, Any]]) -> str:
    """Such as `3 × window 96, full`: KV cache groups of the engine, layers of each in brackets."""
    kinds: dict[str, int] = {}
    for group in groups:
        name = group["kind"].removesuffix("Spec").removesuffix("Attention")
        if group["window"] and name in ("SlidingWindow", "ChunkedLocal"):
            name = f"{'window' if name == 'SlidingWindow' else 'chunks of'} {group['window']}"
        kinds[f"{name} ({group['layers']})"] = kinds.get(f"{name} ({group['layers']})", 0) + 1
    return ", ".join(f"{n} × {kind}" if n > 1 else kind for kind, n in kinds.items()) or "—"


def tell(answers: Answers | None) -> str:
    if answers is None:
        return "—"
    said = f"{answers.loaded_tokens}"
    if answers.exact:
        said += f", Δ {answers.worst_logprob:.1g}" if answers.worst_logprob else ", Δ 0"
    else:
        said += f", {answers.asked - answers.same_tokens} of {answers.asked} answers differ"
    return said


COLUMNS: Final = ("auto", "fresh process", "prefix caching", "S3 only")


def table(rows: Sequence[Row]) -> str:
    """Markdown: loaded tokens and the largest difference of a logprob, by scenario."""
    head = [
        "architecture", "KV cache groups (layers)", "", "bytes a token: all layers, stored",
        *COLUMNS, "preemptions", "damaged",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        crowd = row.answers.get("prefix caching")
        missed = sum(said == "missed, tokens right" for said in row.damage.values())
        state = row.state if not row.why else f"{row.state}: {row.why}"
        cells = [
            row.architecture,
            describe(row.groups),
            state,
            f"{row.all_layers_bytes}, {row.stored_bytes:g}" if row.all_layers_bytes else "—",
            *(tell(row.answers.get(name)) for name in COLUMNS),
            str(crowd.preemptions) if crowd else "—",
            f"{missed} of {len(row.damage)} missed" if row.damage else "—",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def sizes_table(rows: Sequence[Row]) -> str:
    """Markdown: bytes a token, or of a state, by kind of group."""
    lines = ["| architecture | the engine's KV | `neve plan size` |  |", "|---" * 4 + "|"]
    for row in rows:
        if not row.engine:
            lines.append(f"| {row.architecture} | — | — | not run: {row.why or row.state} |")
            continue
        same = "equal" if row.engine == row.planned else f"**differs** {row.why}"
        lines.append(
            f"| {row.architecture} | {sizes(row.engine)} | {sizes(row.planned)} | {same} |"
        )
    return "\n".join(lines)


def published_sizes(python: Path) -> str:
    """Lines of tests/vllm/check_sizes.py."""
    return subprocess.run(
        [str(python), str(SCRIPTS / "check_sizes.py"), "--list"],
        env=engine_environment(), check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


def published_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| model | KV dtype | vLLM's layers | `neve plan size` |  |", "|---" * 5 + "|"]
    for row in rows:
        dtype = "bfloat16" if row["kv_dtype"] == "auto" else row["kv_dtype"]
        engine, planned = row.get("engine", {}), row["planned"]
        same = "equal" if engine == planned else f"**differs** {row.get('why', '')}"
        cells = (row["model"], dtype, sizes(engine), sizes(planned), same)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sizes(found: dict[str, float]) -> str:
    return ", ".join(f"{name}: {size:,.10g}" for name, size in found.items()) or "—"


# ---- memory

MEMORY_BYTES: Final = 40 << 30
# Source: config.json of google/gemma-3-27b-it, openai/gpt-oss-120b, Qwen/Qwen3-Next-80B-A3B.
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "Gemma 3 27B": {
        "layers": [*(["window"] * 5 + ["full"]) * 10, "window", "window"],
        "window": 1024, "heads": 16, "head_dim": 128,
    },
    "gpt-oss 120B": {
        "layers": ["window", "full"] * 18, "window": 128, "heads": 8, "head_dim": 64,
    },
    "Qwen3-Next 80B": {
        "layers": (["state"] * 3 + ["full"]) * 12, "heads": 2, "head_dim": 256,
        "state": [16, 32, 128, 128, 4],
    },
}  # fmt: skip
LENGTHS: Final = (32768, 131072)


def memory_rows(lab: Lab) -> list[list[str]]:
    """For each shape and tiny engine, with the hybrid KV cache manager and without."""
    asked, names = [], []
    for name, shape in SHAPES.items():
        for longest in LENGTHS:
            for hybrid in (False, True):
                more = {"longest": longest, "memory_bytes": MEMORY_BYTES, "hybrid": hybrid}
                asked.append(shape | more)
                names.append((f"{name}, {longest:,} tokens", hybrid))
    done = subprocess.run(
        [lab.python, ROOT / "tests/support/kv_memory.py"],
        env=engine_environment(PYTHONPATH=str(ROOT / "tests")),
        input=json.dumps(asked), capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers = json.loads(done.stdout.splitlines()[-1])
    rows = [
        memory_row(name, hybrid, MEMORY_BYTES, answer)
        for (name, hybrid), answer in zip(names, answers, strict=True)
    ]
    process = lab.process("first")
    for name in MEASURED:
        for hybrid in (False, True):
            engine = {
                "max_model_len": LONGEST, "max_num_batched_tokens": STEP_TOKENS,
                "kv_cache_memory_bytes": KV_BYTES, "enable_prefix_caching": True,
                "disable_hybrid_kv_cache_manager": not hybrid,
            } | ENGINE.get(name, {})  # fmt: skip
            try:
                process.start(None, model=str(lab.models / name), engine=engine)
                answer = process.ask("describe")
                process.ask("stop")
            except RuntimeError as error:
                answer = {"error": str(error).strip().splitlines()[-1]}
            rows.append(memory_row(f"engine of tiny {name}", hybrid, KV_BYTES, answer))
    return rows


def memory_row(name: str, hybrid: bool, memory_bytes: int, answer: dict[str, Any]) -> list[str]:
    cells = [name, "on" if hybrid else "off"]
    if "error" in answer:
        return [*cells, f"does not start: {answer['error']}", "—", "—", "—"]
    longest, groups = answer["longest"], answer["groups"]
    parts = parts_of(groups, longest)
    chunk = choose_chunk_tokens(parts[0].block_tokens, block_bytes_per_token(parts, 1))
    stored, loaded = stored_bytes(parts, chunk), loaded_bytes(parts, chunk)
    state = f" and {stored.fixed:,} a state" if stored.fixed else ""
    return [
        *cells,
        f"{memory_bytes / answer['concurrency'] / 2**20:,.1f}",
        f"{answer['concurrency']:.1f}",
        f"{stored.per_token:,.0f}{state}",
        f"{loaded.of(longest) / 2**20:,.1f}",
    ]


def memory_table(rows: Sequence[Sequence[str]]) -> str:
    head = [
        "shape, longest request", "hybrid manager", "MiB of KV that it takes in the engine",
        f"such requests in {MEMORY_BYTES >> 30} GiB (engines: {KV_BYTES >> 20} MiB)",
        "bytes a token in the store", "MiB loaded for it",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def load_row(path: Path) -> Row:
    raw = json.loads(path.read_text())
    raw["answers"] = {name: Answers(**answers) for name, answers in raw["answers"].items()}
    return Row(**raw)


def architecture_names() -> list[str]:
    sys.path.append(str(SCRIPTS))
    from make_architectures import ARCHITECTURES

    return list(ARCHITECTURES)


def main() -> None:
    names = architecture_names()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ARCHITECTURE")
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench/architectures")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    parser.add_argument("--write", action="store_true", help="into docs/models.md as well")
    parser.add_argument("--sizes", action="store_true", help="only compare KV with the planner's")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory table out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        with ExitStack() as stack:
            folder = options.out / f"run-{time.time_ns()}"
            lab = Lab(stack, folder, options.python, options.only, has_platform=not options.sizes)
            if options.sizes:
                for name in options.only:
                    row = Architecture(lab, name).sizes()
                    path = options.out / f"{name}.sizes.json"
                    path.write_text(json.dumps(asdict(row), indent=1))
                    print(f"{name}: {sizes(row.engine)}; {row.why}", file=sys.stderr, flush=True)
                (options.out / "published.jsonl").write_text(published_sizes(options.python))
                options.only = []
            elif not options.no_memory:
                (options.out / "memory.txt").write_text(json.dumps(memory_rows(lab)))
            for name in options.only:
                row = Architecture(lab, name).run()
                (options.out / f"{name}.json").write_text(json.dumps(asdict(row), indent=1))
                print(
                    f"{name}: {row.state} {row.why} ({row.took_s} s)", file=sys.stderr, flush=True
                )
    paths = {name: options.out / f"{name}.json" for name in names}
    rows = [
        load_row(path) if path.exists() else Row(name, "not measured")
        for name, path in paths.items()
    ]
    sized = [
        next(
            (load_row(path) for path in (file.with_suffix(".sizes.json"), file) if path.exists()),
            row,
        )
        for file, row in zip(paths.values(), rows, strict=True)
    ]
    parts = {"sizes": sizes_table(sized)}
    published = options.out / "published.jsonl"
    if published.exists():
        found = [json.loads(line) for line in published.read_text().splitlines()]
        parts["published sizes"] = published_table(found)
    if any(path.exists() for path in paths.values()):
        parts["architectures"] = table(rows)
    memory = options.out / "memory.txt"
    if memory.exists():
        parts["memory"] = memory_table(json.loads(memory.read_text()))
    print("\n\n".join(parts.values()))
    if options.write:
        page = ROOT / "docs/models.md"
        page.write_text(written_into(page.read_text(), parts))


def written_into(page: str, parts: dict[str, str]) -> str:
    """The page with each part between its marks. Raises ValueError for marks that it lacks."""
    for name, text in parts.items():
        before, mark, rest = page.partition(
            f"<!-- {name}: written by `make bench-architectures` -->\n"
        )
        if not mark:
            raise ValueError(f"the page has no mark for {name}")
        after = rest.partition("<!-- end -->")[2]
        page = f"{before}{mark}\n{text}\n\n<!-- end -->{after}"
    return page


if __name__ == "__main__":
    main()
