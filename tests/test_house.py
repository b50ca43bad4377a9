"""The house rules that a machine can check: who imports whom, what arms may see, sizes, words, documentation."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "unhack"

# Data flows left to right: a module imports only from modules before it (or from its own package).
ROWS = (
    "types seeds files config settings machine stats stop",
    "problems loopholes",
    "check_config",
    "prompts model extraction",
    "adapters rollout compare sandbox",
    "grade self_check audit pairs",
    "directions",
    "monitors",
    "interventions",
    "advantage loss optim step_metrics blinding",
    "checkpoint record evaluate pool teacher",
    "train",
    "probes detection",
    "results advice hypotheses experiments",
    "plots curves outcome report organism demo completions grading",
    "cli __main__",
)
ORDER = " ".join(ROWS).split()

# Training code that sees what pays, never what really happened.
BLIND = ("interventions", "monitors", "advantage", "loss", "optim", "directions", "adapters", "rollout")

MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def room(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(tree: ast.AST) -> set[str]:
    """The rooms of unhack that a syntax tree imports, at any depth of nesting."""
    found: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("unhack.")}
    return {name for name in found if name in ORDER or (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").exists()}


def names_in(tree: ast.AST) -> set[str]:
    """The names that code (not a comment or docstring) mentions: variables, attributes, imports, keywords."""
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.alias):
            words.add(node.name)
        elif isinstance(node, ast.keyword) and node.arg:
            words.add(node.arg)
    return words


# The noisy oracle, whose runs say what it is, and the ear that hears for it (or not at all for everyone else).
HEARING = [SOURCE / "monitors" / "ear.py", SOURCE / "monitors" / "oracle.py"]

VERDICT_NAMES = {"Verdict", "Grading", "verdict", "verdicts", "judge", "strictly_correct", "hacked"}
ANSWER_NAMES = {"solvable", "expected", "reference", "cases"}


def test_rules_below_catch_what_they_forbid() -> None:
    assert imported_rooms(ast.parse("from unhack.grade import x\ndef f():\n    import unhack.loss as loss")) == {
        "grade",
        "loss",
    }
    assert imported_rooms(ast.parse("from unhack import record, __version__")) == {"record"}
    assert names_in(ast.parse("def f(x):\n    return g(x.verdict, cases=y)")) == {"x", "verdict", "g", "cases", "y"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_only_from_rows_above_it(path: Path) -> None:
    own = room(path)
    assert own in ORDER, f"give {own} its place in ORDER"
    imported = imported_rooms(ast.parse(path.read_text(encoding="utf-8"))) - {own}
    too_late = [name for name in imported if name not in ORDER or ORDER.index(name) > ORDER.index(own)]
    assert not too_late, f"{own} comes before {', '.join(too_late)}"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room(path) in BLIND and path not in HEARING], ids=lambda path: path.name
)
def test_training_code_never_sees_the_strict_verdict(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not imported_rooms(tree) & {"grade", "record", "evaluate", "sandbox"}
    assert not names_in(tree) & VERDICT_NAMES
    allowed = {"NoisyOracle"} if path == SOURCE / "monitors" / "__init__.py" else set()
    assert not names_in(tree) & ({"NoisyOracle", "tell"} - allowed), "only the registry of monitors knows the oracle"


@pytest.mark.parametrize("path", sorted((SOURCE / "interventions").glob("*.py")), ids=lambda path: path.name)
def test_an_arm_never_reads_a_problems_answers(path: Path) -> None:
    assert not names_in(ast.parse(path.read_text(encoding="utf-8"))) & ANSWER_NAMES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 80, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_source_has_no_unfinished_business_and_no_machine_paths(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"TODO|FIXME|XXX|NotImplementedError|placeholder|\bfor now\b|\bstub", text)
    assert not re.findall(r"/work/|/home/\w|/root/|/Users/\w", text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_names_are_ascii_and_everything_is_annotated(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            assert node.id.isascii()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [item.arg for item in arguments if item.annotation is None and item.arg not in ("self", "cls")]
            assert not bare and node.returns is not None, f"{node.name} lacks annotations"


def test_cli_help_is_quick_because_it_imports_no_torch() -> None:
    code = "import sys; from unhack.cli import main; assert main(['--help']) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_every_pinned_version_is_exact_and_torch_is_the_measured_one() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert "torch==2.13.0" in pins


def test_make_refuses_old_python_and_names_the_cure(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    environment = {**os.environ, "PYTHON": "", "MAKEFLAGS": ""}
    done = subprocess.run(["make", "setup"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "install one, or run make PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_agents_page_fits_one_screen() -> None:
    assert (REPOSITORY / "AGENTS.md").read_text().count("\n") <= 60
