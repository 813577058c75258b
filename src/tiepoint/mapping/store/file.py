"""The database as a file of SQLite: how it is made, opened, checked, locked and closed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np

from ...errors import ArgumentError, InputError, TiepointError
from ...geometry.colmap import import_pycolmap
from ...io.files import atomic, open_file, scratch_folder
from .schema import COLUMNS, FORMER_TABLES, OWN_COLUMNS, OWN_INDICES, OWN_TABLES


class DatabaseFile:
    """A COLMAP database with tiepoint's tables, open; make one with `DatabaseFile.open`.

    pycolmap brings its own copy of SQLite, and two copies in one process do not see each other's locks: when
    `pycolmap.Database` closes the file, it deletes the log of a connection that is open in the same process. So each
    operation first looks whether the log is still there, and connects anew if it is not.

    Parameters
    ----------
    path : Path
        Has been checked.
    immutable : bool
        The file cannot be written to. SQLite then reads it without the log beside it, which it could not create.
    """

    def __init__(self, path: Path, immutable: bool = False) -> None:
        self.path = path
        self._immutable = immutable
        self._closed = False
        self._db = self._connect()

    @classmethod
    def open(cls, path: Path, create: bool = True, read_only: bool = False) -> DatabaseFile:
        """Open a database, of ours or of COLMAP's making; see `Store.open`."""
        pycolmap = import_pycolmap()
        if not path.exists():
            if not create:
                raise InputError(f"{path}: does not exist; 'tiepoint map' makes one")
            _create(path)
            try:
                return cls.open(path, create=False)
            except BaseException:  # most often the disk is full; an empty database is of no use
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                raise
        try:
            with open_file(path) as stream:
                start = stream.read(16)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; give the path of a COLMAP database") from error
        if start != b"SQLite format 3\0":
            raise InputError(f"{path}: not a database; give the path of a COLMAP database, or a new one")
        immutable = read_only and not (os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK))
        if immutable and (log := path.with_name(f"{path.name}-wal")).exists() and log.stat().st_size:
            raise InputError(
                f"{path}: was not closed properly, and what {log.name} holds can be taken over only where both may be "
                "written to; work on a copy of both"
            )
        _check_version(path, pycolmap.__version__, immutable)
        file = cls(path, immutable)
        try:
            file._check_own_tables() if immutable else file._add_own_tables()
        except BaseException:
            with suppress(InputError):
                file.close()
            raise
        return file

    def close(self) -> None:
        """Close the file; raises `InputError` if the log could not be moved into it, which keeps the log."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._immutable and self._log == self._log_now():
                with _explained(self.path):  # SQLite does the same when it closes, but does not report a failure
                    self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection, for reading; SQLite's errors become `InputError`."""
        if self._closed:
            raise ArgumentError(f"{self.path}: the store is closed; open it again with Store.open")
        if not self._immutable and self._log != self._log_now():
            # pycolmap deleted the log, after moving its content into the database.
            self._db.close()
            self._db = self._connect()
        with _explained(self.path):
            yield self._db

    def row(self, query: str, *values: int) -> sqlite3.Row | None:
        """Return the first row that a query finds, with the names of its columns; None if there is none."""
        with self.reading() as db:
            cursor = db.cursor()
            cursor.row_factory = sqlite3.Row
            found: sqlite3.Row | None = cursor.execute(query, values).fetchone()
        return found

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection, for writing: all is committed at the end, or nothing after an error."""
        with self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has done so already where the disk is full
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def well_formed(self, what: str) -> Iterator[None]:
        """Turn the errors of reading damaged content into `InputError` that names what is damaged."""
        try:
            yield
        except TiepointError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, np.linalg.LinAlgError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, KeyError):  # whose text is the key alone
                reason = f"refers to {reason}, which is not there"
            raise InputError(
                f"{self.path}: damaged: {what} ({reason}); go back to a copy, or start with a new one"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        with _explained(self.path):
            db = _connect(self.path, self._immutable)
            if self._immutable:
                self._log = None
                return db
            try:
                db.execute("PRAGMA journal_mode = WAL")
                # A power failure may undo the last transactions, a dying process none; neither does harm.
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA foreign_keys = ON")
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # makes the log exist
            except BaseException:
                db.close()
                raise
            self._log = self._log_now()
        return db

    def _log_now(self) -> tuple[int, int] | None:
        """Return which file the log is, or None if there is none."""
        try:
            found = os.stat(f"{self.path}-wal")  # noqa: PTH116 - called before every operation
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _names(self, db: sqlite3.Connection) -> set[str]:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_master")}

    def _add_own_tables(self) -> None:
        with self.transaction() as db:  # also finds out whether the file may be written to
            for former, name in FORMER_TABLES.items():
                if former in self._names(db):
                    db.execute(f"ALTER TABLE {former} RENAME TO {name}")
            for statement in OWN_TABLES:
                db.execute(statement)

    def _check_own_tables(self) -> None:
        with self.reading() as db:
            present = self._names(db)
        if lacking := [name for name in (*OWN_COLUMNS, *OWN_INDICES) if name not in present]:
            raise InputError(
                f"{self.path}: lacks {lacking[0]}, which tiepoint adds to a database, and cannot be written to; work "
                "on a copy"
            )


def _create(path: Path) -> None:
    """Make an empty COLMAP database, whole or not at all.

    COLMAP does not notice when a disk is full. So it makes the file elsewhere, and what it made is checked and copied.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    pycolmap = import_pycolmap()
    try:
        with scratch_folder() as folder:
            made = folder / "database.db"
            pycolmap.Database.open(made).close()
            DatabaseFile.open(made, create=False).close()  # adds our own tables
            content = made.read_bytes()
    except (RuntimeError, OSError, InputError) as error:
        raise InputError(
            f"{path}: the database cannot be made: no space for temporary files ({error}); free some, or name another "
            "folder in the environment variable TMPDIR"
        ) from error
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(content)
    except InputError as error:
        raise InputError(f"{path}: the database cannot be made: {error.__cause__ or error}") from error


def _connect(path: Path, immutable: bool = False) -> sqlite3.Connection:
    """Open a file that exists; SQLite would make one where there is none.

    ``immutable`` is SQLite's word for a file that nobody changes: it is read without the log beside it, which could not
    be made where nothing can be written.
    """
    how = "mode=ro&immutable=1" if immutable else "mode=rw"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=60, isolation_level=None)


def _check_version(path: Path, installed: str, immutable: bool = False) -> None:
    """Raise `InputError` unless this is a COLMAP database with the tables and columns that are used here."""
    with _explained(path), closing(_connect(path, immutable)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]  # 4020100 is 4.2.1
        present = {
            table: {row[1] for row in db.execute(f"PRAGMA table_info({table})")}  # of a table that is not there: none
            for table in COLUMNS
        }
    if not present["images"]:
        raise InputError(f"{path}: an SQLite database, but not one of COLMAP's; give another path")
    made_by = f"{version // 1_000_000}.{version // 10_000 % 100}" if version else "an early version"
    if (version // 1_000_000, version // 10_000 % 100) > tuple(int(part) for part in installed.split(".")[:2]):
        raise InputError(
            f"{path}: made by COLMAP {made_by}, which is newer than the installed pycolmap {installed}; "
            "pip install --upgrade pycolmap"
        )
    for table, columns in COLUMNS.items():
        lacking = [column for column in columns.split(", ") if column not in present[table]]
        if lacking:
            raise InputError(
                f"{path}: made by COLMAP {made_by}, its table {table!r} lacks {', '.join(lacking)}; make a copy, and "
                f"let pycolmap {installed} bring it up to date: "
                f"""python -c "import pycolmap; pycolmap.Database.open('{path}').close()\""""
            )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into `InputError` that says what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        reason = str(error)
        advice = next((advice for words, advice in _ADVICE.items() if words in reason), None)
        if advice is None:
            if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
                raise  # a fault of ours
            advice = "check the disk and the permissions"
        raise InputError(f"{path}: {reason}; {advice}") from error
    except UnicodeDecodeError as error:  # the message of an SQLite error that quotes the file
        raise InputError(f"{path}: damaged; go back to a copy, or start with a new one") from error


_ADVICE = {
    "disk is full": "free some space and run the same again: what was written before is kept",
    "disk I/O error": "is the disk full, or failing? What was written before is kept",
    "readonly": "give the right to write to the file and its folder, or work on a copy",
    "unable to open": "if it is there, give the right to write to it and its folder, or work on a copy",
    "locked": "another program has been writing to it for a minute; wait until it is done, or end it",
    "not a database": "give the path of a COLMAP database, or a new one",
    "malformed": "the file is damaged; go back to a copy, or start with a new one",
}
