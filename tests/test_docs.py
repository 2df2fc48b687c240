"""What the documentation says is true: its Python runs, its commands parse, its links lead somewhere."""

import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import typer

import fastdiffusion

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs both make it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower()).strip())


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    """An empty folder but for ``photos/``, in which every training takes two steps of a very small net."""
    from PIL import Image

    from fastdiffusion import Learner

    (tmp_path / "photos").mkdir()
    for i in range(40):
        noise = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / "photos" / f"{i}.png")
    init, fit = Learner.__init__, Learner.fit
    small = {"net": {"name": "dit", "patch": 8, "width": 32, "depth": 1, "head": 32}, "batch_size": 8, "verbose": False}
    monkeypatch.setattr(Learner, "__init__", lambda self, data, **keywords: init(self, data, **{**keywords, **small}))
    monkeypatch.setattr(Learner, "fit", lambda self, **budget: fit(self, steps=2))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=page_id)
def test_python_runs(path, small_world):
    """The blocks of a page are one program, run from top to bottom."""
    names = {"__name__": path.stem}
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), names)


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "bash")], ids=page_id)
def test_commands_parse(path, tmp_path, monkeypatch):
    """Each ``fastdiffusion`` line names a command that exists, with options and values that it takes."""
    from fastdiffusion.cli import app

    (tmp_path / "runs" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "photos" / "run.toml").write_text('data = "photos"\n')
    monkeypatch.chdir(tmp_path)
    group = typer.main.get_command(app)
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "fastdiffusion":
                group.commands[words[1]].make_context(words[1], words[2:])


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        link = next(filter(None, target))
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{link} in {page_id(path)}"
        if anchor:
            assert anchor in [slug(h) for h in re.findall(r"^#+ (.*)$", there.read_text(), re.M)], link


def test_extras_exist():
    """Every ``pip install 'fastdiffusion[...]'``, in the documentation and in the library's errors, names an extra."""
    code = "\n".join(p.read_text() for p in (ROOT / "src").rglob("*.py"))
    text = code + "\n".join(p.read_text() for p in PAGES)
    named = set(re.findall(r"fastdiffusion\[(\w+)\]", text))
    named |= set(re.findall(r"\bmissing\((?:[^()]|\([^()]*\))*,\s*\"(\w+)\"\s*\)", code))
    assert named <= set(EXTRAS)


def test_constraints_pin_what_the_project_names():
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    asked = [*PROJECT["dependencies"], *(d for extra in EXTRAS.values() for d in extra)]
    names = {re.match(r"[\w.-]+", d)[0].lower().replace("_", "-") for d in asked} - {"fastdiffusion"}
    assert names <= pins
    assert "torchvision" not in names | pins


def test_changelog_tells_of_this_version():
    assert f"## {fastdiffusion.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_scripts_can_be_run():
    for script in ("scripts/check", "scripts/system-packages", ".ci/run"):
        assert os.access(ROOT / script, os.X_OK), script
