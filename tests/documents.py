"""The project's Markdown files: their blocks, their commands, and which test runs each of those."""

import dataclasses
import re
from pathlib import Path

from jaxcls.config.augment import Augmentation, RandAugment

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("*", "configs/**/*", "jaxcls/**/*", "launch/**/*")
    for path in ROOT.glob(f"{folder}.md")
)
GUIDE = "configs/guide/README.md"

# Commands that no test runs, and why not.
NOT_RUN = {
    "uv run --extra dev pytest -n 2 --dist loadfile": "this is how the tests are run",
    "bash .ci/run": "it runs these tests",
    "pip install uv": "needs a package index",
    "pip install jax flatbuffers": "needs a package index; tests/inference/test_export.py runs an "
    "exported program with jax alone",
    "uv run --extra dev python tests/data/speed.py --tf PYTHON": "needs TensorFlow, and minutes",
    "uv run --isolated --extra tpu-compiler jaxcls compile configs/imagenet/kerascv_b0.py "
    "--topology v5e:4x4 --batch-per-chip 128 --compute-dtype bfloat16": "needs the TPU's compiler, "
    "and minutes; tests/measure/test_rehearsal_tpu.py compiles a small network",
    "uv run --isolated --extra gpu-compiler jaxcls compile configs/imagenet/kerascv_b0.py "
    "--topology h200:8 --batch-per-chip 256 --compute-dtype bfloat16": "needs the GPU's compiler, "
    "and minutes; tests/measure/test_rehearsal_gpu.py compiles a small network",
    "uv pip compile --universal --upgrade --no-header --no-annotate --no-emit-index-url "
    "--all-extras pyproject.toml": "needs a package index",
}


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(document: str, language: str) -> list[str]:
    """The contents of a document's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(document), re.M | re.S)


def jaxcls_command(command: str) -> str | None:
    """The part of a command that test_readme.py runs in its own process; None if it cannot."""
    found = re.fullmatch(r"(?:pip install uv && )?uv run (?:--extra \w+ )*(jaxcls .*)", command)
    return found[1] if found and "gs://" not in command else None


def needs_fakes(block: str) -> bool:
    """Whether tests/launch/test_commands.py runs a block, with fakes of clouds and clusters.

    (launch/local.py needs none of them.)
    """
    return "launch/local.py" not in block and any(
        word in block for word in ("gs://", "launch/", "sbatch ")
    )


def prose(document: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(document), flags=re.M | re.S)


def anchors(document: str) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.M)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {line.replace(" ", "-") for line in words}


def links(document: str) -> list[str]:
    """Where a document's links and pictures lead within the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    return [link for link in found if "://" not in link]


def small(augment: tuple[Augmentation, ...]) -> tuple[Augmentation, ...]:
    """The same without most operations of RandAugment, of which each takes a second to compile."""
    return tuple(
        dataclasses.replace(entry, ops=("Equalize", "ShearX"))
        if isinstance(entry, RandAugment)
        else entry
        for entry in augment
    )
