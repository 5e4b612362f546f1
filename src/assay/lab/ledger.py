"""The ledger: every finished unit, written at once, never rewritten.

SQLite (in WAL mode, so that many processes write side by side) by default; PostgreSQL where several machines share one:
``ASSAY_LEDGER=postgresql+psycopg://...``. A seed of a claim is *done* once for a given code, scale and device; the database
itself refuses a second entry, so nothing can be counted twice. A server that restarts, or has no connection free at the
moment, is asked again for a minute before a worker gives up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from assay.errors import AssayError
from assay.lab.machine import now
from assay.paths import folder, ledger_url

_metadata = sa.MetaData()

#: A seed of a claim, its code and how it was run: what can be done once.
_IDENTITY = ("key", "claim", "seed", "scale", "device", "code")

_units = sa.Table(
    "units",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(80), nullable=False),
    sa.Column("claim", sa.String(120), nullable=False),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("scale", sa.String(10), nullable=False),
    sa.Column("device", sa.String(10), nullable=False),
    sa.Column("code", sa.String(32), nullable=False),
    sa.Column("status", sa.String(10), nullable=False),
    sa.Column("values", sa.JSON, nullable=False),
    sa.Column("curves", sa.JSON, nullable=False),
    sa.Column("costs", sa.JSON, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("peak_bytes", sa.BigInteger, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("machine", sa.JSON, nullable=False),
    sa.Column("versions", sa.JSON, nullable=False),
    sa.Column("commit", sa.String(50), nullable=False),
    sa.Column("finished", sa.String(40), nullable=False),
    sa.Index(
        "done_once",
        *_IDENTITY,
        unique=True,
        sqlite_where=sa.text("status = 'done'"),
        postgresql_where=sa.text("status = 'done'"),
    ),
)

#: Verdicts ask for all rows of a claim, failed ones among them.
_by_claim = sa.Index("by_claim", _units.c.key, _units.c.claim)


@dataclass(frozen=True)
class Row:
    """One seed of one claim, as it was measured.

    Attributes:
        key, claim, seed, scale, device: which unit.
        code: fingerprint of the claim's code at that time.
        status: ``done``, ``crashed`` (a bug; ``error`` holds the traceback), ``refused`` (data or settings; ``error`` is one
            sentence) or ``timeout``.
        values: arm -> number.
        curves: arm -> ``{"x": [...], "y": [...], "x_name": ..., "y_name": ...}``.
        costs: arm -> ``{"seconds": ..., "parameters": ..., "flops": ..., "bytes": ...}``.
        seconds: wall-clock seconds of the unit (of its share, where a unit held several seeds).
        peak_bytes: peak memory of the worker's process.
        machine, versions, commit: where and with what.
        finished: UTC.
    """

    key: str
    claim: str
    seed: int
    scale: str
    device: str
    code: str
    status: str = "done"
    values: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0
    error: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    finished: str = field(default_factory=now)


_T = TypeVar("_T")

#: Seconds for which a database server that does not answer is asked again when something is read or written.
PATIENCE = 60.0

#: Any number, the same in every process: who holds this lock of PostgreSQL's makes the tables, others wait.
_MAKING_TABLES = 0x61737361


def exists(url: str | None = None) -> bool:
    """Whether there is a ledger to read: any database that is named, or a file that has been made."""
    try:
        there = sa.make_url(url or ledger_url())
    except sa.exc.ArgumentError:
        return True  # whoever opens it is told what is wrong
    return there.get_backend_name() != "sqlite" or Path(there.database or "").is_file()


class Ledger:
    """Opens (and where needed makes) a ledger.

    Args:
        url: of a SQLite or PostgreSQL database; ``None`` takes ``ASSAY_LEDGER`` or the file under ``ASSAY_HOME``.
        patience: seconds for which a server that does not answer is asked again *while opening*; a person who mistyped its
            name should not wait for long.
        keep: whether a connection to a server stays open between uses. A thousand workers that each keep one are more than a
            server takes (PostgreSQL: a hundred), and a worker writes once a unit: it connects for that.

    Raises:
        AssayError: the ledger cannot be read, or is of another kind.
    """

    def __init__(self, url: str | None = None, patience: float = 5.0, keep: bool = True) -> None:
        self.url = url or ledger_url()
        self._engine = _engine(self.url, keep)
        if self.is_file and self._engine.url.database:
            folder(Path(self._engine.url.database).parent)
        self._ask(_make_tables, patience)

    @property
    def is_file(self) -> bool:
        """Whether the ledger is a SQLite file, which only one machine can use."""
        return bool(self._engine.dialect.name == "sqlite")

    @property
    def place(self) -> str:
        """Where the ledger is, for people: without a password."""
        if self.is_file and self._engine.url.database:
            return self._engine.url.database
        return self._engine.url.render_as_string(hide_password=True)

    def add(self, rows: Iterable[Row]) -> None:
        """Write finished rows; all are on disk when this returns. A row that is already done stays as it is."""
        for row in rows:
            with suppress(IntegrityError):  # somebody else finished the same unit: theirs counts
                self._ask(_Insertion(row))

    def rows(self, **wanted: str | int) -> list[Row]:
        """Rows whose columns have the given values, oldest first."""
        query = sa.select(*(_units.c[f.name] for f in fields(Row))).order_by(_units.c.id)
        for name, value in wanted.items():
            query = query.where(_units.c[name] == value)
        return self._ask(lambda connection: [Row(**found) for found in connection.execute(query).mappings()])

    def done(self, key: str, claim: str, scale: str, device: str, code: str) -> dict[int, Row]:
        """Seed -> row of everything that is done for this code."""
        rows = self.rows(key=key, claim=claim, scale=scale, device=device, code=code, status="done")
        return {row.seed: row for row in rows}

    def count_done(self) -> int:
        """How many seeds are done, of all claims."""
        query = sa.select(sa.func.count()).where(_units.c.status == "done")
        return self._ask(lambda connection: int(connection.execute(query).scalar_one()))

    def measured(self) -> list[tuple[str, str, str, str, str, int]]:
        """Key, claim, scale, device and code of everything of which at least one seed is done, with its newest row's number."""
        columns = [_units.c[name] for name in ("key", "claim", "scale", "device", "code")]
        query = sa.select(*columns, sa.func.max(_units.c.id)).where(_units.c.status == "done").group_by(*columns)
        return self._ask(lambda connection: [tuple(found) for found in connection.execute(query.order_by(*columns))])

    def latest(self, most: int) -> list[Row]:
        """The rows that were finished last, newest first, without their curves and costs."""
        columns = [_units.c[f.name] for f in fields(Row) if f.name not in ("curves", "costs")]
        query = sa.select(*columns).order_by(_units.c.id.desc()).limit(most)
        return self._ask(lambda connection: [Row(**found) for found in connection.execute(query).mappings()])

    def _ask(self, work: Callable[[sa.Connection], _T], patience: float = PATIENCE) -> _T:
        """Do ``work`` in one transaction; while the server is away, again and again for ``patience`` seconds."""
        deadline, pause = time.monotonic() + patience, 0.1
        while True:
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except IntegrityError:
                raise
            except DatabaseError as error:
                away = not self.is_file and (error.connection_invalidated or isinstance(error, OperationalError))
                if not away or time.monotonic() + pause > deadline:
                    raise self._unusable(error) from error
            time.sleep(pause * random.uniform(0.5, 1.0))  # not all workers at the same moment
            pause = min(2 * pause, 5.0)

    def _unusable(self, error: DatabaseError) -> AssayError:
        why = " ".join(str(error.orig).split())
        mend = "move it away" if self.is_file else "see that the server runs and lets you in"
        return AssayError(f"The ledger {self.place} cannot be used ({why}): {mend}, or name another with ASSAY_LEDGER.")


def _engine(url: str, keep: bool) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        kind = parsed.get_backend_name()
        if kind == "sqlite":
            engine = sa.create_engine(parsed)
            sa.event.listen(engine, "connect", _set_up_sqlite)
            return engine
        if kind == "postgresql":
            if parsed.drivername == kind:  # what others write; SQLAlchemy would then look for an older driver
                parsed = parsed.set(drivername="postgresql+psycopg")
            pool: dict[str, Any] = (
                {"pool_size": 1, "max_overflow": 4, "pool_pre_ping": True} if keep else {"poolclass": sa.pool.NullPool}
            )
            return sa.create_engine(parsed, connect_args={"connect_timeout": 10}, **pool)
    except ImportError as error:
        raise AssayError(
            f"The ledger is a {kind} database, for which a package is missing ({error}): `pip install 'assay[cluster]'`."
        ) from error
    except sa.exc.ArgumentError as error:
        raise AssayError(f"ASSAY_LEDGER cannot be read as a database URL ({error}): write postgresql+psycopg://...") from error
    # What makes a second entry impossible is a unique index over the rows that are done, which other databases do not have.
    raise AssayError(f"ASSAY_LEDGER names a {kind} database: take PostgreSQL (postgresql+psycopg://...) or a SQLite file.")


def _make_tables(connection: sa.Connection) -> None:
    if {"done_once", "by_claim"} <= _indices(connection):
        return
    # One process makes them, others that start at the same moment wait for it here.
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MAKING_TABLES)))
    _metadata.create_all(connection)
    _by_claim.create(connection, checkfirst=True)  # into a ledger of before there was this index


def _indices(connection: sa.Connection) -> set[str | None]:
    inspector = sa.inspect(connection)
    return {index["name"] for index in inspector.get_indexes("units")} if inspector.has_table("units") else set()


class _Insertion:
    """Writes one row. Asked again after a connection was lost, it first looks whether the row did arrive."""

    def __init__(self, row: Row) -> None:
        self.values = {**asdict(row), "error": _storable(row.error)}
        self.tried = False

    def __call__(self, connection: sa.Connection) -> None:
        if self.tried and self._arrived(connection):
            return
        self.tried = True
        connection.execute(_units.insert().values(self.values))

    def _arrived(self, connection: sa.Connection) -> bool:
        same = [_units.c[name] == self.values[name] for name in (*_IDENTITY, "status", "seconds", "finished", "error")]
        return connection.execute(sa.select(_units.c.id).where(*same)).first() is not None


def _storable(text: str) -> str:
    """PostgreSQL takes neither NUL characters nor half surrogates; a traceback may hold both."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def _set_up_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=60000")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a finished unit survives the machine, not only the process
    cursor.close()
