"""Where addresses are, from a file: a prefix table (CSV or YAML) or an MMDB.

A prefix table has `prefix`, `city`, `latitude` and `longitude` in each row: CSV with that
header, or a YAML list of mappings. An MMDB is any database in the layout of GeoLite2-City:
`location.latitude`, `location.longitude`, and `city.names.en` where it knows the city.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import maxminddb
import msgspec
import yaml

from control_plane.geodns.errors import PlacesUnreadable
from topology.geo import Address, Locator, Place, PrefixRow, PrefixTable, unmapped

_HINT = "`prefix_table` and `mmdb` in the settings name the file"
_MAX_TABLE_BYTES = 64 * 2**20


class NowhereLocator:
    """Knows no place: every client gets the stable spread."""

    def locate(self, ip: Address) -> Place | None:
        return None


class MmdbLocator:
    """Looks addresses up in a memory-mapped MMDB. Replace the file and restart to renew it."""

    def __init__(self, path: Path) -> None:
        """Raises `PlacesUnreadable`."""
        try:
            self._reader = maxminddb.open_database(str(path))
        except (OSError, maxminddb.InvalidDatabaseError, ValueError) as error:
            raise PlacesUnreadable(f"cannot use {path}: {error}", hint=_HINT) from error
        self._families = (4, 6) if self._reader.metadata().ip_version == 6 else (4,)

    def locate(self, ip: Address) -> Place | None:
        """Raises `maxminddb.InvalidDatabaseError` where the file is damaged inside."""
        ip = unmapped(ip)
        if ip.version not in self._families:
            return None
        found, length = self._reader.get_with_prefix_len(ip)
        location = _mapping(_mapping(found).get("location"))
        latitude, longitude = location.get("latitude"), location.get("longitude")
        if not isinstance(latitude, float | int) or not isinstance(longitude, float | int):
            return None
        city = _mapping(_mapping(_mapping(found).get("city")).get("names")).get("en")
        if not isinstance(city, str):
            city = f"{latitude:.2f},{longitude:.2f}"
        return Place(city, float(latitude), float(longitude), length)

    def close(self) -> None:
        self._reader.close()


def load_table(path: Path) -> PrefixTable:
    """A prefix table from `.csv`, or YAML by any other name.

    Raises `PlacesUnreadable`, or `InvalidDocument` naming every row that is wrong.
    """
    try:
        if path.stat().st_size > _MAX_TABLE_BYTES:
            raise PlacesUnreadable(f"{path} is larger than 64 MiB", hint="use an MMDB file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlacesUnreadable(f"cannot read {path}: {error}", hint=_HINT) from error
    if path.suffix.lower() == ".csv":
        return PrefixTable.parse_csv(text, str(path))
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PlacesUnreadable(f"{path} is no YAML: {error}", hint=_HINT) from error
    return PrefixTable.parse([] if raw is None else raw, str(path))


def open_locator(
    prefix_table: Path | None, mmdb: Path | None, prefixes: Sequence[PrefixRow] = ()
) -> Locator:
    """The locator that the settings ask for; the table is asked first, then the MMDB.

    The table is `prefixes` or the file `prefix_table`. Raises as `load_table` and `MmdbLocator`.
    """
    table = PrefixTable.build(prefixes) if prefixes else None
    if prefix_table is not None:
        table = load_table(prefix_table)
    database = MmdbLocator(mmdb) if mmdb else None
    if table is None:
        return NowhereLocator() if database is None else database
    return table if database is None else TableFirst(table, database)


class TableFirst:
    """The table's answer where it has one: an operator's own prefixes outrank the database."""

    def __init__(self, table: PrefixTable, database: Locator) -> None:
        self._table = table
        self._database = database

    def locate(self, ip: Address) -> Place | None:
        place = self._table.locate(ip)
        if place is not None:
            return place
        place = self._database.locate(ip)
        if place is None:
            return None
        # The database does not know which parts of its prefix the table takes out.
        length = max(place.prefix_length, self._table.hole_length(ip))
        return msgspec.structs.replace(place, prefix_length=length)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
