"""Settings from outside the code (L5): environment over TOML file over code, live.

Nothing is read before the first timed block is made. A file is looked at each second by a daemon
thread of its own, never by a call; a file that can't be used is logged once and changes nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import clock as _clock
from .. import events, fork, registry, snapshot
from ..endpoint import endpoints
from .settings import (
    PREFIX,
    ConfigError,
    Setting,
    Settings,
    explained,
    from_environ,
    from_toml,
    merged,
    spelling,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..block import TimedBlock
    from ..endpoint import Endpoint
    from ..policy import Breaker, Policy

__all__ = ["ConfigError", "Configuration", "EffectivePolicy", "Setting", "effective"]

logger = logging.getLogger("timedblock")

#: Seconds between two looks at the file, and before a changed one is believed: whoever writes
#: it in place is at it for a moment.
LOOK_EVERY = 1.0
SETTLE = 0.1
SAVE_EVERY = 60.0
#: Variables of ours that are no settings of a block.
_OURS = {f"{PREFIX}{name}" for name in ("CONFIG", "MODE", "SNAPSHOT", "FAULTS")}


@dataclass(frozen=True)
class EffectivePolicy:
    """The policy of one block as it is in force.

    Attributes:
        block: its name.
        endpoint: ``host:port``, or None.
        settings: by field (``ceiling``, ``breaker.failures``), the value and its origin.
    """

    block: str
    endpoint: str | None
    settings: dict[str, Setting]


class Configuration:
    """What the environment and one file say, and the blocks that obey it.

    Lock: `_lock` guards a reload; no call ever takes it.
    """

    def __init__(self, environ: Mapping[str, str], file: str | Path | None = None) -> None:
        """Read both; `file` None: the one that ``TIMEDBLOCK_CONFIG`` names, or none.

        Raises:
            ConfigError: one of them can't be used.
        """
        name = file or environ.get(f"{PREFIX}CONFIG") or None
        self.file = None if name is None else Path(name)
        self._environ = from_environ(environ)
        self._lock = threading.Lock()
        self._text: bytes | None = None
        self._unsettled: bytes | None = None
        self._complaint = ""
        self._on_paper = False
        self._file = Settings()
        if self.file is not None:
            try:
                self._text = self.file.read_bytes()
            except OSError as error:
                raise ConfigError(_unreadable(self.file, error)) from None
            self._file = self._parse(self._text)
        self._obey_mode()

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock, half-way through a file."""
        self._lock = threading.Lock()
        self._text = None

    # -- what blocks ask --------------------------------------------------------------------

    @property
    def observing(self) -> bool:
        """Whether learnt limits and breakers decide on paper only."""
        return self._on_paper

    def policy(self, block: TimedBlock) -> Policy:
        """What the settings make of the policy of a new block.

        They were right by themselves when they were read; where they don't go with this block's
        own policy, that is logged and the code's stands: a first call must not fail of it.
        """
        try:
            return self._agreed(block, self.check(block))
        except ConfigError as error:
            logger.error("%s; the code's policy stands", error)
            return block.given

    def check(self, block: TimedBlock) -> Policy:
        """The policy of a block, or ConfigError: the settings don't go with the code's policy."""
        try:
            return merged(block.given, self.found(block.name))
        except ConfigError as error:
            raise ConfigError(f"{block.name}: {error}") from None

    def found(self, name: str, file: Settings | None = None) -> dict[str, Setting]:
        """The settings of a block by field, the winning ones."""
        file = self._file if file is None else file
        return {**file.blocks.get(name, {}), **self._environ.blocks.get(spelling(name), {})}

    def _agreed(self, block: TimedBlock, policy: Policy) -> Policy:
        """An endpoint has one breaker: the second block that sets it must set it alike."""
        if block.endpoint is None or policy.breaker in (None, block.given.breaker):
            return policy
        for other in list(registry.BLOCKS):
            theirs = other.policy.breaker
            if other.endpoint is not block.endpoint or theirs in (None, other.given.breaker):
                continue
            if theirs != policy.breaker:
                logger.error("%s", _disagreement(other.name, block.name, block.endpoint))
                return replace(policy, breaker=theirs)
        return policy

    # -- the file ---------------------------------------------------------------------------

    def poll(self) -> float:
        """Look at the file and obey it if it has changed; seconds until the next look.

        Raises nothing: what can't be used is logged, once, and changes nothing.
        """
        if self.file is None:
            return LOOK_EVERY
        try:
            text = self.file.read_bytes()
        except OSError as error:
            self._complain(_unreadable(self.file, error))
            return LOOK_EVERY
        if text == self._text:
            self._complaint, self._unsettled = "", None
            return LOOK_EVERY
        if text != self._unsettled:
            self._unsettled = text
            return SETTLE
        try:
            self.obey(text)
        except Exception as error:
            self._complain(str(error) if isinstance(error, ConfigError) else type(error).__name__)
        return LOOK_EVERY

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            logger.error("%s; the settings before stay in force", text)

    def obey(self, text: bytes) -> None:
        """Put a file's text in force, for all blocks or for none.

        Raises:
            ConfigError: it can't be used; nothing has changed.
        """
        with self._lock:
            file = self._parse(text)
            plans = [
                (block, merged(block.given, self.found(block.name, file)))
                for block in list(registry.BLOCKS)
            ]
            breakers = _breakers(plans)
            self._file, self._text = file, text
            self._obey_mode()
            for endpoint in endpoints():
                breaker = breakers.get(endpoint, endpoint.breaker)
                if breaker is not None:
                    endpoint.set_breaker(breaker)
            for block, policy in plans:
                if policy != block.policy or block.observing != self.observing:
                    block.reconfigure(policy, self.observing)
        logger.info("%s is in force", self.file)

    def _parse(self, text: bytes) -> Settings:
        where = str(self.file)
        try:
            return from_toml(text.decode(), where)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where}: {error}") from None

    def _obey_mode(self) -> None:
        mode = self._environ.mode or self._file.mode
        self._on_paper = mode is not None and mode.value == "observe"
        if self._on_paper and _every_call not in events.listeners:
            events.listeners.append(_every_call)
        elif not self._on_paper and _every_call in events.listeners:
            events.listeners.remove(_every_call)

    # -- what people ask ----------------------------------------------------------------------

    @property
    def mode(self) -> Setting:
        """``enforce`` or ``observe``."""
        return self._environ.mode or self._file.mode or Setting("enforce", "default")

    @property
    def snapshot(self) -> Setting | None:
        """The file where learnt limits are kept."""
        return self._environ.snapshot or self._file.snapshot

    def tables(self) -> dict[str, dict[str, Setting]]:
        """What file and environment say, by block: the winning settings.

        A block that only the environment names is spelt as it is there.
        """
        spelt = {spelling(name) for name in self._file.blocks}
        only = [name for name in self._environ.blocks if name not in spelt]
        found = {name: self.found(name) for name in self._file.blocks}
        return found | {name: self._environ.blocks[name] for name in only}

    def effective(self) -> list[EffectivePolicy]:
        """The policy of every block of this process, and where each value came from."""
        found: dict[tuple[str, str], EffectivePolicy] = {}
        for block in list(registry.BLOCKS):
            endpoint = None if block.endpoint is None else block.endpoint.name
            try:
                settings = explained(block.given, self._shared(block) | self.found(block.name))
            except ConfigError:  # it was logged, and the code's policy stands
                settings = explained(block.given, {})
            found[block.name, endpoint or ""] = EffectivePolicy(block.name, endpoint, settings)
        return [found[key] for key in sorted(found)]

    def _shared(self, block: TimedBlock) -> dict[str, Setting]:
        """What other blocks' settings say of the breaker that this block shares with them."""
        if block.endpoint is None or block.given.breaker is None:
            return {}
        return {
            key: setting
            for other in list(registry.BLOCKS)
            if other.endpoint is block.endpoint and other.given.breaker is not None
            for key, setting in self.found(other.name).items()
            if key.startswith("breaker.")
        }


def _unreadable(file: Path, error: OSError) -> str:
    return f"{file}: {error.strerror or type(error).__name__}"


def _disagreement(one: str, other: str, endpoint: Endpoint) -> str:
    return (
        f"{one} and {other} set the breaker of {endpoint.name} differently; "
        "an endpoint has one breaker"
    )


def _breakers(plans: list[tuple[TimedBlock, Policy]]) -> dict[Endpoint, Breaker]:
    """The breakers that settings ask for, by endpoint; ConfigError where two differ."""
    chosen: dict[Endpoint, tuple[str, Breaker]] = {}
    for block, policy in plans:
        endpoint, breaker = block.endpoint, policy.breaker
        if endpoint is None or breaker is None or breaker == block.given.breaker:
            continue
        name, before = chosen.setdefault(endpoint, (block.name, breaker))
        if before != breaker:
            raise ConfigError(_disagreement(name, block.name, endpoint))
    return {endpoint: breaker for endpoint, (_, breaker) in chosen.items()}


def _every_call(event: events.Event) -> None:
    """Observe mode listens, and does nothing: with a listener no call takes the short way past
    `TimedBlock.settle`, which judges it on paper. Off, it costs nothing at all."""


# -- the one configuration of this process ------------------------------------------------------


class _Keeper:
    """The daemon thread that looks at the file and saves what was learnt; in a fork, another."""

    def __init__(self, configuration: Configuration, clock: _clock.Clock) -> None:
        self._configuration = configuration
        self._clock = clock
        self._next_look = self._next_save = clock.monotonic()
        self._next_look += LOOK_EVERY
        self._next_save += SAVE_EVERY
        self._saved = True

    def tick(self) -> float:
        """Do what is due; seconds until the next time."""
        now = self._clock.monotonic()
        if now >= self._next_look:
            self._next_look = now + self._configuration.poll()
        if now >= self._next_save:
            self._next_save = now + SAVE_EVERY
            self.save()
        return max(0.0, min(self._next_look, self._next_save) - self._clock.monotonic())

    def save(self) -> None:
        """Save what was learnt, where a file is named; a failure is logged once."""
        target = self._configuration.snapshot
        if target is None:
            return
        try:
            snapshot.save_learnt(target.value)
            self._saved = True
        except OSError as error:
            if self._saved:
                logger.error("%s", _unreadable(Path(target.value), error))
            self._saved = False

    def start(self) -> None:
        """Begin, on a daemon thread."""
        threading.Thread(target=self._run, name="timedblock-config", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                pause = self.tick()
            except Exception as error:  # a mistake of ours must not end the watch
                logger.error("looking after settings failed: %s", type(error).__name__)
                pause = LOOK_EVERY
            self._clock.sleep(pause)

    def after_fork(self) -> None:
        """The thread stayed in the parent."""
        self._next_look = self._clock.monotonic() + LOOK_EVERY
        self.start()


_beginning = fork.Guard()
_configuration: Configuration | None = None
_keeper: _Keeper | None = None


def begin(*, file: Path | None = None, live: bool = True) -> Configuration:
    """The configuration of this process, read at the first time and followed from then (`live`).

    Raises:
        ConfigError: file or environment can't be used. The next call tries again.
    """
    global _configuration
    with _beginning.lock:
        if _configuration is None:
            made = Configuration(os.environ, file)
            for problem in strangers(os.environ):
                logger.warning("%s", problem)
            _configuration = made
            if live:
                _keep(made)
        return _configuration


def _keep(configuration: Configuration) -> None:
    global _keeper
    fork.register(configuration)
    target = configuration.snapshot
    if target is not None:
        snapshot.load_learnt(target.value)
    if target is None and configuration.file is None:
        return
    _keeper = _Keeper(configuration, _clock.SYSTEM)
    fork.register(_keeper)
    atexit.register(_keeper.save)
    _keeper.start()


def strangers(environ: Mapping[str, str]) -> list[str]:
    """What is wrong with variables that look like ours and aren't: a message each."""
    return [
        f"{name} is no setting of timedblock's; a block's has '__' in it"
        for name in environ
        if name.startswith(PREFIX) and "__" not in name and name not in _OURS
    ]


def effective() -> list[EffectivePolicy]:
    """The policy in force of every block of this process, and where each value came from.

    Raises:
        ConfigError: file or environment can't be used.
    """
    return begin().effective()


def as_json(configuration: Configuration) -> dict[str, Any]:
    """Everything that `timedblock config` shows, for ``json.dumps``."""

    def plain(settings: Mapping[str, Setting]) -> dict[str, dict[str, Any]]:
        return {key: {"value": one.value, "from": one.origin} for key, one in settings.items()}

    target = configuration.snapshot
    general = {"mode": configuration.mode} | ({} if target is None else {"snapshot": target})
    return {
        "file": None if configuration.file is None else str(configuration.file),
        "general": plain(general),
        "blocks": [
            {"block": one.block, "endpoint": one.endpoint, "settings": plain(one.settings)}
            for one in configuration.effective()
        ],
        "tables": {name: plain(found) for name, found in configuration.tables().items()},
    }
