"""docs/engines.md: each "yes" and "refused" names a test that there is."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/engines.md").read_text()
PROOF = re.compile(r"^(\d+)\. `(tests/[\w/]+\.py)::([\w:]+)`( \(long\))?", re.MULTILINE)


def functions_in(file: Path) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """By `test_...` or `Class::test_...`."""
    found: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}::{each.name}": each
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


def cells() -> list[str]:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [cell.strip() for row in rows[2:] for cell in row.strip("|").split("|")[1:]]


def test_each_proof_is_a_test():
    proofs = PROOF.findall(PAGE)
    assert [int(number) for number, *_ in proofs] == list(range(1, len(proofs) + 1))
    for _, file, name, is_long in proofs:
        tests = functions_in(ROOT / file)
        assert name in tests, f"{file}::{name}"
        marks = [ast.unparse(each) for each in tests[name].decorator_list]
        assert bool(is_long) == ("pytest.mark.long" in marks), f"{file}::{name}"


def test_each_yes_has_a_proof_and_each_proof_is_used():
    claims = [cell for cell in cells() if cell.startswith(("yes", "refused"))]
    assert all(re.fullmatch(r"(yes|refused)( \d+)+", claim) for claim in claims), claims
    used = {int(number) for claim in claims for number in claim.split()[1:]}
    assert used == {int(number) for number, *_ in PROOF.findall(PAGE)}
