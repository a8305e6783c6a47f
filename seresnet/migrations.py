"""Records of older versions, read as this version means them: for each kind of record a chain of functions from schema to schema.

Applied on reading, in memory: no old file is ever rewritten by it. Within a schema keys may be added, and readers pass over those that
they do not know. One invariant: from every schema that was ever released a chain leads to the current one (a test looks).
"""

from collections.abc import Callable, Mapping
from typing import Any

from seresnet import __version__
from seresnet.errors import ConfigError

Record = dict[str, Any]
#: From a record of one schema to the record of the next; "schema" itself is not its business. The argument may be changed.
Migration = Callable[[Record], Record]

#: The schema that this version writes.
CURRENT: Mapping[str, int] = {"checkpoint": 1, "run.yaml": 1, "result.json": 1}

#: From which schema, how. A checkpoint's record has header and scalars, and "renamed": tensor names of the file -> of the next schema.
CHAINS: Mapping[str, Mapping[int, Migration]] = {"checkpoint": {}, "run.yaml": {}, "result.json": {}}

_FIX: Mapping[str, str] = {
    "checkpoint": "Set it aside: python -m seresnet.checkpoint repair.",
    "run.yaml": "Move run.yaml away and launch the sweep again to write it.",
    "result.json": "Move it away to have it made again.",
}


def to_current(
    kind: str, record: Any, current: Mapping[str, int] = CURRENT, chains: Mapping[str, Mapping[int, Migration]] = CHAINS
) -> Record:
    """The record in this version's schema. Raises ConfigError for one that no version wrote, or a newer one; says no file name."""
    if not isinstance(record, dict):
        raise ConfigError(f"not a mapping of keys, but a {type(record).__name__}. {_FIX[kind]}")
    schema = record.get("schema")
    wanted = current[kind]
    if type(schema) is not int or schema < 1:
        raise ConfigError(f"schema is {schema!r}, this version ({__version__}) reads 1 to {wanted}. {_FIX[kind]}")
    if schema > wanted:
        raise ConfigError(
            f"schema is {schema}: a newer version wrote it, this one ({__version__}) reads up to {wanted}. "
            "Go on with the code that wrote it, or a newer one."
        )
    found: Record = record
    for step in range(schema, wanted):
        assert step in chains[kind], f"no migration of {kind} from schema {step} to {step + 1}"
        found = {**chains[kind][step](found), "schema": step + 1}
    return found
