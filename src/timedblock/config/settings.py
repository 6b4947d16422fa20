"""What a file and the environment say, checked, and what it makes of a policy.

Nothing here looks at a file or a clock: text and mappings in, policies out.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..deadline import LONGEST
from ..policy import Breaker, Fixed, Percentile, Policy, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")
PREFIX = "TIMEDBLOCK_"
CODE, FILE, ENVIRONMENT = 0, 1, 2
MODES = ("enforce", "observe")

#: What only code can say.
_CODE_ONLY = {"fallback", "ignore", "hedge", "on", "wait", "_wait"}
_LEARNING = tuple(one.name for one in fields(Percentile))
_BREAKER = tuple(one.name for one in fields(Breaker))
_RETRY = tuple(one.name for one in fields(Retry) if one.name not in _CODE_ONLY)
_PLAIN = ("bulkhead", "fallback_limit", "isolation")
_TABLES = {"breaker": _BREAKER, "retry": _RETRY}
#: The fields of a block's table, as ``breaker.failures`` where they are of a table below.
FIELDS = (
    "timeout",
    *_LEARNING,
    *_PLAIN,
    *_TABLES,
    *(f"{table}.{name}" for table, names in _TABLES.items() for name in names),
)
#: Where ``false`` says that there is none.
_MAY_BE_OFF = {
    "timeout",
    "initial",
    "bulkhead",
    "breaker",
    "breaker.failure_rate",
    "breaker.slow_rate",
    "retry",
}


class ConfigError(ValueError):
    """The configuration can't be used; the message names the file or variable, table and key."""


@dataclass(frozen=True)
class Setting:
    """A value, and where it came from.

    Attributes:
        value: the value; durations are seconds.
        origin: ``default``, ``code``, the file with its table, or the variable's name.
        rank: which wins: 0 the code, 1 the file, 2 the environment.
    """

    value: Any
    origin: str
    rank: int = CODE


@dataclass(frozen=True)
class Settings:
    """What one source says.

    Attributes:
        mode: ``enforce`` or ``observe``.
        snapshot: the file where learnt limits are kept.
        blocks: by block (a file's names; the environment's spelling of them), by field.
    """

    mode: Setting | None = None
    snapshot: Setting | None = None
    blocks: dict[str, dict[str, Setting]] = field(default_factory=dict)


def spelling(name: str) -> str:
    """A block's name as a variable has it: ``memcache.get`` is ``MEMCACHE_GET``."""
    return re.sub(r"[.\-]", "_", name).upper()


# -- reading ----------------------------------------------------------------------------------


def _loads(text: str) -> dict[str, Any]:
    """TOML as a dict. The parser is imported by those who have some: most programs don't."""
    if sys.version_info >= (3, 11):
        from tomllib import loads
    else:
        from tomli import loads
    document: dict[str, Any] = loads(text)
    return document


def from_toml(text: str, where: str) -> Settings:
    """What a file says; `where` names it in errors.

    Raises:
        ConfigError: it is no TOML, or has a table, a key or a value that means nothing.
    """
    try:
        document = _loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {error}") from None
    for key in document:
        _known(key, ("mode", "snapshot", "block"), f"{where}:")
    tables = document.get("block", {})
    if not isinstance(tables, dict):
        raise ConfigError(f'{where}: block must be tables such as [block."memcache.get"]')
    return Settings(
        mode=_mode(document.get("mode"), where, FILE),
        snapshot=_snapshot(document.get("snapshot"), where, FILE),
        blocks={name: _from_table(name, table, where) for name, table in tables.items()},
    )


def _from_table(name: str, table: Any, where: str) -> dict[str, Setting]:
    here = f'{where}: [block."{name}"]'
    if not isinstance(table, dict):
        raise ConfigError(f'{where}: {name} must be a table: [block."{name}"], not {table!r}')
    found: dict[str, Setting] = {}
    for key, value in table.items():
        if key in _TABLES and isinstance(value, dict):
            below = f'{where}: [block."{name}".{key}]'
            for inner, inner_value in value.items():
                _known(inner, _TABLES[key], below)
                found[f"{key}.{inner}"] = Setting(inner_value, below, FILE)
        else:
            _known(key, [one for one in FIELDS if "." not in one], here)
            if isinstance(value, dict):
                hint = f' (a dot in a block\'s name needs quotes: [block."{name}.{key}"])'
                raise ConfigError(f"{here} {key}: a table is not a value{hint}")
            found[key] = Setting(value, here, FILE)
    _check(found)
    return found


def _known(key: str, known: Sequence[str], where: str) -> None:
    if key in known:
        return
    if key in _CODE_ONLY:
        raise ConfigError(f"{where} {key}: only code can set it")
    import difflib

    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise ConfigError(f"{where} {key}: unknown key; {hint}")


def from_environ(environ: Mapping[str, str]) -> Settings:
    """What the variables ``TIMEDBLOCK_…`` say.

    A variable without a double underscore that isn't ours is left alone: Kubernetes makes
    ``TIMEDBLOCK_SERVICE_HOST`` where a service has our name.

    Raises:
        ConfigError: a field is unknown or a value means nothing.
    """
    blocks: dict[str, dict[str, Setting]] = {}
    for variable, text in sorted(environ.items()):
        name, double, path = variable.removeprefix(PREFIX).partition("__")
        if not (variable.startswith(PREFIX) and double):
            continue
        key = path.lower().replace("__", ".")
        if not name:
            raise ConfigError(f"{variable}: no block is named before the double underscore")
        _known(key, FIELDS, variable)
        blocks.setdefault(name, {})[key] = Setting(_value(text, variable), variable, ENVIRONMENT)
    for found in blocks.values():
        _check(found)
    return Settings(
        mode=_mode(environ.get(f"{PREFIX}MODE") or None, f"{PREFIX}MODE", ENVIRONMENT),
        snapshot=_snapshot(
            environ.get(f"{PREFIX}SNAPSHOT") or None, f"{PREFIX}SNAPSHOT", ENVIRONMENT
        ),
        blocks=blocks,
    )


def _value(text: str, variable: str) -> Any:
    """A variable's text as TOML would have it; what isn't TOML is a string."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        parsed = _loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text


def _mode(value: Any, origin: str, rank: int) -> Setting | None:
    if value is None:
        return None
    if value not in MODES:
        here = origin if rank == ENVIRONMENT else f"{origin}: mode"
        raise ConfigError(f"{here} must be {' or '.join(MODES)}, not {value!r}")
    return Setting(value, origin, rank)


def _snapshot(value: Any, origin: str, rank: int) -> Setting | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{origin}: snapshot must be a file's name, not {value!r}")
    return Setting(value, origin, rank)


# -- checking ---------------------------------------------------------------------------------


def _check(found: dict[str, Setting]) -> None:
    """Each value by itself, then all of one table together: the policy's own classes judge."""
    for key, setting in found.items():
        _make_alone({key: setting})
    _make_alone(found)
    if "timeout" in found and any(key in found for key in _LEARNING):
        other = next(key for key in _LEARNING if key in found)
        raise ConfigError(
            f"{found[other].origin} {other}: there is nothing to learn beside a fixed timeout"
        )


def _make_alone(found: dict[str, Setting]) -> None:
    """Make the policy of `found` alone, on a base with which every right value agrees."""
    base = Policy(
        timeout=Percentile(floor=1e-9, ceiling=LONGEST),
        breaker=Breaker(open_for=1e-9, open_max=LONGEST),
        retry=Retry() if any(key.startswith("retry.") for key in found) else None,
    )
    merged(base, found)


# -- merging ----------------------------------------------------------------------------------


def merged(given: Policy, found: Mapping[str, Setting]) -> Policy:
    """`given` with the settings of `found` in place of its own.

    A ceiling that was set lowers a floor and an initial limit that are of less weight.

    Raises:
        ConfigError: naming where the value came from.
    """
    for key, setting in found.items():
        _check_switch(key, setting)
    policy = given
    for part in (_with_timeout, _with_breaker, _with_retry):
        policy = part(policy, found)
    plain = {key: found[key] for key in _PLAIN if key in found}
    return _make(lambda values: replace(policy, **values), plain) if plain else policy


def _check_switch(key: str, setting: Setting) -> None:
    """``false`` is for what may be off, ``true`` for the tables, which take no other value."""
    value = setting.value
    if (value is True and key not in _TABLES) or (value is False and key not in _MAY_BE_OFF):
        raise _wrong(key, setting, f"{str(value).lower()} is no value for it")
    if key in _TABLES and not isinstance(value, bool):
        raise _wrong(key, setting, f"must be a table, true or false, not {value!r}")


def _wrong(key: str, setting: Setting, text: str) -> ConfigError:
    last = key.rpartition(".")[2]
    # a variable's name says which field it sets; a table's doesn't
    where = setting.origin if setting.rank == ENVIRONMENT else f"{setting.origin} {last}"
    return ConfigError(f"{where}: {text}")


def _make(build: Callable[[dict[str, Any]], T], chosen: Mapping[str, Setting]) -> T:
    """``build({field: value})``; an error names the setting that it is about."""
    values = {
        key.rpartition(".")[2]: None if setting.value is False else setting.value
        for key, setting in chosen.items()
    }
    try:
        return build(values)
    except (TypeError, ValueError) as error:
        # the field that the message names first: "Percentile(floor=2) is above its ceiling"
        named = re.search(r"\((\w+)", str(error))
        blamed = named.group(1) if named else ""
        key = next((one for one in chosen if one.rpartition(".")[2] == blamed), next(iter(chosen)))
        raise _wrong(key, chosen[key], str(error)) from None


def _with_timeout(policy: Policy, found: Mapping[str, Setting]) -> Policy:
    learning = {key: found[key] for key in _LEARNING if key in found}
    fixed = found.get("timeout")
    if fixed is not None and not any(one.rank > fixed.rank for one in learning.values()):
        if fixed.value is False:
            return replace(policy, timeout=None)
        return replace(policy, timeout=_make(lambda v: Fixed(v["timeout"]), {"timeout": fixed}))
    if not learning:
        return policy
    timeout = policy.timeout
    if isinstance(timeout, Fixed):
        if learning.keys() == {"ceiling"}:  # a fixed limit is its own ceiling
            return replace(policy, timeout=_make(lambda v: Fixed(v["ceiling"]), learning))
        timeout = Percentile(ceiling=timeout.seconds, floor=min(0.05, timeout.seconds))
    base = timeout or Percentile()
    learning = _lowered(base, learning)
    return replace(policy, timeout=_make(lambda values: replace(base, **values), learning))


def _lowered(base: Percentile, learning: dict[str, Setting]) -> dict[str, Setting]:
    """`learning`, with the ceiling for a floor or an initial limit above it of less weight."""
    ceiling = learning.get("ceiling")
    if ceiling is None:
        return learning
    lowered = {}
    for key in ("floor", "initial"):
        mine = learning.get(key) or Setting(getattr(base, key), "code")
        if mine.rank < ceiling.rank and _above(mine.value, ceiling.value):
            lowered[key] = ceiling
    return {**learning, **lowered}


def _above(value: Any, ceiling: Any) -> bool:
    numbers = (int, float)
    return isinstance(value, numbers) and isinstance(ceiling, numbers) and value > ceiling > 0


def _with_breaker(policy: Policy, found: Mapping[str, Setting]) -> Policy:
    return _with_table(policy, "breaker", Breaker, found)


def _with_retry(policy: Policy, found: Mapping[str, Setting]) -> Policy:
    return _with_table(policy, "retry", Retry, found)


def _with_table(
    policy: Policy, table: str, kind: type[Breaker] | type[Retry], found: Mapping[str, Setting]
) -> Policy:
    whole = found.get(table)
    inner = {key: found[key] for key in found if key.startswith(f"{table}.")}
    if whole is not None and whole.value is False:
        inner = {key: one for key, one in inner.items() if one.rank > whole.rank}
        if not inner:
            return _replace(policy, table, None)
    if not inner and whole is None:
        return policy
    base = getattr(policy, table) or kind()
    made = _make(lambda values: replace(base, **values), inner) if inner else base
    return _replace(policy, table, made)


def _replace(policy: Policy, name: str, value: Any) -> Policy:
    changes: dict[str, Any] = {name: value}
    return replace(policy, **changes)


# -- showing ----------------------------------------------------------------------------------


def explained(given: Policy, found: Mapping[str, Setting]) -> dict[str, Setting]:
    """Every field of the policy that `found` makes of `given`, with where it came from."""
    policy = merged(given, found)
    code, default = dict(_values(given)), dict(_values(Policy()))
    shown: dict[str, Setting] = {}
    for key, value in _values(policy):
        setting = found.get(key) or found.get(key.partition(".")[0])
        if setting is not None and _is(setting.value, value):
            shown[key] = Setting(value, setting.origin, setting.rank)
        elif value == code.get(key, value):
            shown[key] = Setting(value, "default" if default.get(key, code) == value else "code")
        else:
            ceiling = found.get("ceiling")
            shown[key] = Setting(value, ceiling.origin if ceiling else "code")
    return shown


def _is(said: Any, value: Any) -> bool:
    return (said is False and value is None) or bool(said == value) or said is True


def _values(policy: Policy) -> Iterator[tuple[str, Any]]:
    timeout = policy.timeout
    if isinstance(timeout, Percentile):
        yield from ((name, getattr(timeout, name)) for name in _LEARNING)
    else:
        yield "timeout", None if timeout is None else timeout.seconds
    yield from ((name, getattr(policy, name)) for name in _PLAIN)
    for table, names in _TABLES.items():
        part = getattr(policy, table)
        if part is None:
            yield table, None
        else:
            yield from ((f"{table}.{name}", getattr(part, name)) for name in names)
