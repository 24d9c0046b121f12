"""What happens to versions after publishing: rolled back, brought back, pruned.

Safe beside servers that poll the repository and beside publishers: a version appears or disappears
by one rename, writers hold the model's lock, no number comes to mean another model.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from model_repository import (
    PRUNED,
    STAGING,
    WITHDRAWN,
    RepositoryError,
    fsync,
    locked,
    model_names,
    numbered,
    versions,
)

Say = Callable[[str], None]


def rollback(model: Path, say: Say) -> None:
    """Withdraw the model's newest version, so that servers go back to the one before.

    RepositoryError where no other is left: a server would have nothing to go back to.
    """
    _require_model(model)
    with locked(model):
        published = versions(model)
        if len(published) < 2:
            raise RepositoryError(f"{model}: has no version before the newest to go back to")
        before, newest = published[-2:]
        # The time of withdrawal, by which --undo finds the last one.
        os.utime(model / str(newest), ns=(time.time_ns(),) * 2, follow_symlinks=False)
        _rename(model / str(newest), model / f"{WITHDRAWN}{newest}")
    say(f"withdrew {model / str(newest)}; the newest version is now {before}")


def undo_rollback(model: Path, say: Say) -> None:
    """Publish again the version that was withdrawn last, under its own number."""
    _require_model(model)
    with locked(model):
        withdrawn = numbered(model, WITHDRAWN)
        if not withdrawn:
            raise RepositoryError(f"{model}: no version is withdrawn")
        last = max(withdrawn, key=lambda n: (model / f"{WITHDRAWN}{n}").lstat().st_mtime_ns)
        _rename(model / f"{WITHDRAWN}{last}", model / str(last))
        newest = max(versions(model), default=last)
    say(f"brought back {model / str(last)}; the newest version is now {newest}")


def prune(path: Path, keep: int, stale_hours: float, say: Say, *, dry_run: bool = False) -> None:
    """Delete all but the `keep` newest versions of a model, or of every model of a repository.

    With them go withdrawn versions older than those kept, what an interrupted prune left and, in a
    repository, staging directories in which nothing was written for so many hours. The highest
    number is never among them, so that publishing goes on counting from it.
    """
    if _is_model(path):
        _clean(path, lambda: _obsolete_versions(path, keep), say, dry_run)
        return
    if not (names := model_names(path)):
        raise RepositoryError(f"{path}: holds no published version")
    for model in (path / name for name in names):
        if model.is_symlink():
            say(f"skipped {model}: a symbolic link, whose target may be shared; prune it by itself")
        else:
            prune(model, keep, stale_hours, say, dry_run=dry_run)
    _clean(path, lambda: _stale_staging(path, stale_hours * 3600), say, dry_run)


def _is_model(path: Path) -> bool:
    return path.is_dir() and bool(versions(path) or numbered(path, WITHDRAWN))


def _require_model(path: Path) -> None:
    if not _is_model(path):
        raise RepositoryError(f"{path}: holds no version of a model (give PATH/MODEL)")


def _obsolete_versions(model: Path, keep: int) -> list[Path]:
    published = versions(model)
    kept = published[-keep:]
    old = [model / str(number) for number in published[:-keep]]
    withdrawn = (number for number in numbered(model, WITHDRAWN) if kept and number < kept[0])
    return old + [model / f"{WITHDRAWN}{number}" for number in withdrawn]


def _stale_staging(repository: Path, seconds: float) -> list[Path]:
    return [
        entry
        for entry in sorted(repository.glob(f"{STAGING}*"))
        if time.time() - _last_written(entry) > seconds
    ]


def _last_written(directory: Path) -> float:
    """Latest change of a directory or a file in it; now, where it vanishes meanwhile."""
    try:
        inside = [] if directory.is_symlink() else list(directory.iterdir())
        return max(path.lstat().st_mtime for path in (directory, *inside))
    except (FileNotFoundError, NotADirectoryError):
        return time.time()


def _clean(directory: Path, find: Callable[[], list[Path]], say: Say, dry_run: bool) -> None:
    """Delete what `find` names in a directory, and what an earlier call was stopped in."""
    if dry_run:
        for path in [*sorted(directory.glob(f"{PRUNED}*")), *find()]:
            say(f"would delete {path}")
        return
    with locked(directory):
        for path in sorted(directory.glob(f"{PRUNED}*")):
            _delete(path)
            say(f"deleted {path}")
        for path in find():
            if _hide_and_delete(path):
                say(f"deleted {path}")


def _hide_and_delete(path: Path) -> bool:
    """Delete so that no reader sees half of it; False where a publisher took it away before."""
    hidden = path.with_name(PRUNED + path.name.removeprefix(WITHDRAWN).removeprefix("."))
    try:
        _rename(path, hidden)
    except FileNotFoundError:
        return False
    _delete(hidden)
    return True


def _delete(path: Path) -> None:
    """A link is removed, never followed; neither are links within (`shutil.rmtree`)."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _rename(source: Path, target: Path) -> None:
    source.rename(target)
    fsync(source.parent)
