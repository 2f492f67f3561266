"""The models a server has in memory: watches their folders, loads new versions, retires old ones."""

import dataclasses
import gc
import logging
import threading

from serving.config import ModelConfig
from serving.status import INVALID_ARGUMENT, NOT_FOUND, ServingStatus

START, LOADING, AVAILABLE, UNLOADING, END = "START", "LOADING", "AVAILABLE", "UNLOADING", "END"
log = logging.getLogger("serving")


@dataclasses.dataclass
class VersionState:
    """What became of one version: a state of ModelVersionStatus and an error sentence."""

    state: str
    error: str = ""


class Registry:
    """All versions of all configured models.

    A version is loaded and warmed up before it answers, and the one it replaces answers until then. A version
    that does not load is left out with its error in `status`, until its files change; it never takes a loaded
    one down.

    Args:
        configs: the models.
        load: function (name, version, folder) -> servable; raises on a version it cannot load.
    """

    def __init__(self, configs: list[ModelConfig], load):
        self._configs = {config.name: config for config in configs}
        self._load = load
        self._servables = {name: {} for name in self._configs}
        self._states = {name: {} for name in self._configs}
        self._failed = {}
        self._lock = threading.Lock()

    def poll(self, stop=lambda: False) -> None:
        """Looks at the disk once and brings memory in line with it. One caller at a time."""
        for config in self._configs.values():
            try:
                self._poll_model(config, stop)
            except OSError as error:  # a folder that cannot be read now may be readable at the next poll
                log.warning("model %s: %s", config.name, error)

    def watch(self, seconds: float, stopping: threading.Event) -> None:
        """Polls until `stopping` is set."""
        while not stopping.wait(seconds):
            self.poll(stopping.is_set)

    def resolve(self, name: str, version: int | None = None, label: str = ""):
        """The servable that answers a request, as TensorFlow Serving chooses it.

        Raises:
            ServingStatus: NOT_FOUND, or INVALID_ARGUMENT for an unknown label or a missing name.
        """
        if not name:
            raise ServingStatus(INVALID_ARGUMENT, "ModelSpec has no name specified.")
        with self._lock:
            loaded = dict(self._servables.get(name, {}))
        if label and name in self._configs:
            version = self._configs[name].labels.get(label)
            if version is None:
                raise ServingStatus(INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        wanted = max(loaded, default=None) if version is None else version
        if wanted not in loaded:
            asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise ServingStatus(NOT_FOUND, f"Servable not found for request: {asked}")
        return loaded[wanted]

    def status(self, name: str, version: int | None = None, label: str = "") -> dict[int, VersionState]:
        """State by version number, newest first. Raises ServingStatus as GetModelStatus answers."""
        if not name:
            raise ServingStatus(INVALID_ARGUMENT, "Missing model name in request.")
        if label and name in self._configs:
            version = self._configs[name].labels.get(label)
            if version is None:
                raise ServingStatus(INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        with self._lock:
            states = dict(sorted(self._states.get(name, {}).items(), reverse=True))
        if version is None and states:
            return states
        if version in states:
            return {version: states[version]}
        which = "any versions" if version is None else f"version {version}"
        raise ServingStatus(NOT_FOUND, f"Could not find {which} of model {name}")

    def available(self) -> dict[str, list[int]]:
        """Loaded version numbers by model name; an empty list for a model that has none yet."""
        with self._lock:
            return {name: sorted(loaded) for name, loaded in self._servables.items()}

    def _poll_model(self, config, stop):
        name = config.name
        candidates = config.aspired(_versions(config.folder))
        wanted = len(candidates) if config.num_latest is None else config.num_latest
        serving = []
        # Newest first: where the newest does not load, the next one answers in its place.
        for version in candidates:
            if len(serving) == wanted or stop():
                break
            if version in self._servables[name] or self._try(config, version):
                serving.append(version)
        # Nothing is retired before something else can answer, whatever happened to the folders.
        if serving and not stop():
            for version in [loaded for loaded in self._servables[name] if loaded not in serving]:
                self._retire(name, version)

    def _try(self, config, version):
        folder = config.folder / str(version)
        key, fingerprint = (config.name, version), _fingerprint(folder)
        if self._failed.get(key) == fingerprint:
            return False
        self._set(config.name, version, VersionState(LOADING))
        try:
            if not (folder / "saved_model.pb").is_file():
                raise ValueError("saved_model.pb is missing: not complete yet, or no SavedModel")
            servable = self._load(config.name, version, folder)
        except Exception as error:  # a broken version must not stop the others, whatever it raises
            message = " ".join(str(getattr(error, "message", None) or error).split())
            self._failed[key] = fingerprint
            self._set(config.name, version, VersionState(END, message or type(error).__name__))
            log.warning("model %s: version %d does not load: %s", config.name, version, message)
            return False
        self._failed.pop(key, None)
        with self._lock:
            self._servables[config.name][version] = servable
            self._states[config.name][version] = VersionState(AVAILABLE)
        log.info("model %s: version %d answers", config.name, version)
        return True

    def _retire(self, name, version):
        # Requests in flight hold the servable; its memory is given back when the last of them has ended.
        with self._lock:
            del self._servables[name][version]
            self._states[name][version] = VersionState(END)
        gc.collect()
        log.info("model %s: version %d is retired", name, version)

    def _set(self, name, version, state):
        with self._lock:
            self._states[name][version] = state


def _versions(folder):
    if not folder.is_dir():
        return []
    names = [child.name for child in folder.iterdir() if child.is_dir()]
    return [int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name]


def _fingerprint(folder):
    """Changes when a file of a version does: half a copy is tried again when more of it has arrived."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
