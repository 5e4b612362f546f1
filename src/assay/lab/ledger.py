"""The ledger: every finished unit, written at once, never rewritten.

SQLite (in WAL mode, so that many processes write side by side) by default, or any database that SQLAlchemy reaches:
``ASSAY_LEDGER=postgresql+psycopg://...``. A seed of a claim is *done* once for a given code, scale and device; the database
itself refuses a second entry, so nothing can be counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError

from assay.errors import AssayError
from assay.lab.machine import now
from assay.paths import folder, ledger_url

_metadata = sa.MetaData()

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
        *("key", "claim", "seed", "scale", "device", "code"),
        unique=True,
        sqlite_where=sa.text("status = 'done'"),
        postgresql_where=sa.text("status = 'done'"),
    ),
)


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


class Ledger:
    """Opens (and where needed makes) a ledger.

    Args:
        url: of a database; ``None`` takes ``ASSAY_LEDGER`` or the file under ``ASSAY_HOME``.

    Raises:
        AssayError: the ledger cannot be read.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = url or ledger_url()
        try:
            self._engine = sa.create_engine(self.url)
        except (sa.exc.ArgumentError, ImportError) as error:
            raise AssayError(
                f"ASSAY_LEDGER names {self.url!r}, which cannot be opened: give a database URL ({error})."
            ) from error
        if self._engine.dialect.name == "sqlite":
            if self._engine.url.database:
                folder(Path(self._engine.url.database).parent)
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
        for attempt in (1, 2):  # a second time, because another process may be making the same table at this moment
            try:
                _metadata.create_all(self._engine)
                break
            except DatabaseError as error:
                if attempt == 2:
                    raise self._unreadable(error) from error

    def add(self, rows: Iterable[Row]) -> None:
        """Write finished rows, all or none on disk when this returns; a row that is already done stays as it is."""
        try:
            for row in rows:
                try:
                    with self._engine.begin() as connection:
                        connection.execute(_units.insert().values(asdict(row)))
                except IntegrityError:
                    continue  # somebody else finished the same unit: theirs counts
        except DatabaseError as error:
            raise self._unreadable(error) from error

    def rows(self, **wanted: str | int) -> list[Row]:
        """Rows whose columns have the given values, oldest first."""
        query = sa.select(*(_units.c[f.name] for f in fields(Row))).order_by(_units.c.id)
        for name, value in wanted.items():
            query = query.where(_units.c[name] == value)
        try:
            with self._engine.connect() as connection:
                return [Row(**found) for found in connection.execute(query).mappings()]
        except DatabaseError as error:
            raise self._unreadable(error) from error

    def done(self, key: str, claim: str, scale: str, device: str, code: str) -> dict[int, Row]:
        """Seed -> row of everything that is done for this code."""
        rows = self.rows(key=key, claim=claim, scale=scale, device=device, code=code, status="done")
        return {row.seed: row for row in rows}

    def _unreadable(self, error: DatabaseError) -> AssayError:
        place = self._engine.url.database or self._engine.url.render_as_string(hide_password=True)
        return AssayError(f"The ledger {place} cannot be used ({error.orig}): move it away, or name another with ASSAY_LEDGER.")


def _set_up_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=60000")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a finished unit survives the machine, not only the process
    cursor.close()
