"""Reads the configuration file of tensorflow_model_server: a ModelServerConfig in text form."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One served model.

    Attributes:
        name: the name clients ask for.
        folders: where its version folders may be, in order of preference; the first that exists is watched.
        num_latest: how many of the newest versions are served; None where the policy is another one.
        specific: the versions served under the policy `specific`; empty otherwise.
        labels: version number by version label.
    """

    name: str
    folders: tuple[Path, ...]
    num_latest: int | None = 1
    specific: tuple[int, ...] = ()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return next((folder for folder in self.folders if folder.is_dir()), self.folders[0])

    def aspired(self, versions: list[int]) -> list[int]:
        """The versions worth serving among those on disk, newest first."""
        newest_first = sorted(versions, reverse=True)
        return (
            [version for version in newest_first if version in self.specific]
            if self.specific
            else newest_first
        )


def read_config(path) -> list[ModelConfig]:
    """Reads a model_config_list.

    A relative base_path, which tensorflow_model_server refuses, is looked for beside the file first and in
    the current folder then.

    Raises:
        ValueError: not such a file, or a model without name or base_path, in one line that names the file.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    path = Path(path)
    try:
        parsed = text_format.Parse(path.read_text(encoding="utf-8"), ModelServerConfig())
    except text_format.ParseError as error:
        raise ValueError(f"{path}: not a model server config: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a model server config: it is not text") from None
    models = [_model(entry, path) for entry in parsed.model_config_list.config]
    if not models:
        raise ValueError(
            f"{path}: no model in it; expected model_config_list {{ config {{ name base_path }} }}"
        )
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: model names must be distinct, got {names}")
    return models


def _model(entry, path):
    if not entry.name or not entry.base_path:
        raise ValueError(f"{path}: every model needs a name and a base_path, got name={entry.name!r}")
    if entry.model_platform not in ("", "tensorflow"):
        raise ValueError(f'{path}: model {entry.name!r}: model_platform must be "tensorflow"')
    base = Path(entry.base_path)
    folders = (base,) if base.is_absolute() else (path.resolve().parent / base, Path.cwd() / base)
    policy = entry.model_version_policy
    chosen = policy.WhichOneof("policy_choice")
    specific = tuple(policy.specific.versions) if chosen == "specific" else ()
    if chosen == "specific" and not specific:
        raise ValueError(f"{path}: model {entry.name!r}: the policy `specific` names no version")
    num_latest = max(1, policy.latest.num_versions) if chosen in (None, "latest") else None
    return ModelConfig(entry.name, folders, num_latest, specific, dict(entry.version_labels))
