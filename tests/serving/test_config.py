"""The configuration files that are shipped, and how they are read."""

import re
from pathlib import Path

import pytest

from serving.config import read_config

SERVING = Path(__file__).resolve().parent.parent.parent / "serving"


def parse_batching(text):
    """BatchingParameters, of which tensorflow-serving-api ships no Python class, built from its .proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

    pool = descriptor_pool.Default()
    wrappers = wrappers_pb2.DESCRIPTOR.name
    file = descriptor_pb2.FileDescriptorProto(
        name="batching_test.proto", package="batching_test", syntax="proto3", dependency=[wrappers]
    )
    message = file.message_type.add(name="BatchingParameters")
    fields = [
        ("max_batch_size", "Int64Value"),
        ("batch_timeout_micros", "Int64Value"),
        ("max_enqueued_batches", "Int64Value"),
        ("num_batch_threads", "Int64Value"),
        ("thread_pool_name", "StringValue"),
        ("allowed_batch_sizes", None),
        ("pad_variable_length_inputs", None),
    ]
    for number, (name, wrapper) in enumerate(fields, start=1):
        field = message.field.add(name=name, number=number, label=1, type=8)
        if wrapper:
            field.type, field.type_name = 11, f".google.protobuf.{wrapper}"
        elif name == "allowed_batch_sizes":
            field.type, field.label = 3, 3
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    descriptor = pool.FindMessageTypeByName("batching_test.BatchingParameters")
    return text_format.Parse(text, message_factory.GetMessageClass(descriptor)())


def test_the_shipped_models_are_found_beside_the_package():
    (config,) = read_config(SERVING / "models.config")
    assert config.name == "view_classifier"
    assert config.folders[0].resolve() == SERVING.parent / "saved_models" / "view_classifier"
    assert config.num_latest == 1
    (stock,) = read_config(SERVING / "models.stock.config")
    assert stock.name == config.name
    assert stock.folders == (Path("/saved_models/view_classifier"),)


def test_batching_parameters_obey_the_servers_rules():
    parameters = parse_batching((SERVING / "batching.config").read_text())
    sizes = list(parameters.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == parameters.max_batch_size.value
    assert parameters.num_batch_threads.value >= 1
    assert parameters.batch_timeout_micros.value <= 50_000
    assert not parameters.pad_variable_length_inputs


def test_compose_mounts_files_that_exist_and_names_the_models_served():
    text = (SERVING / "compose.yaml").read_text()
    mounts = re.findall(r"^ +- (\.\S*):(/\S+):ro$", text, re.MULTILINE)
    assert len(mounts) == 3
    for source, _ in mounts:
        assert (SERVING / source).resolve().exists(), source
    targets = {target for _, target in mounts}
    for flag in ("model_config_file", "batching_parameters_file"):
        assert re.search(rf"--{flag}=(\S+)", text)[1] in targets
    (stock,) = read_config(SERVING / "models.stock.config")
    assert str(stock.folders[0].parent) in targets
    assert f"/v1/models/{stock.name} " in text
    assert re.findall(r'^ +- "(\S+)"$', text, re.MULTILINE) == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]


def test_compose_is_yaml():
    yaml = pytest.importorskip("yaml", reason="no YAML parser is installed")
    service = yaml.safe_load((SERVING / "compose.yaml").read_text())["services"]["serving"]
    assert service["image"].startswith("tensorflow/serving:")
    assert all(flag.startswith("--") for flag in service["command"])
    assert service["healthcheck"]["test"][:3] == ["CMD", "bash", "-c"]


def test_policies_and_labels_are_read(tmp_path):
    path = tmp_path / "models.config"
    path.write_text("""
        model_config_list {
          config { name: "a" base_path: "/a" }
          config { name: "b" base_path: "b" model_version_policy { latest { num_versions: 2 } } }
          config { name: "c" base_path: "c" model_version_policy { all { } } }
          config {
            name: "d" base_path: "d" model_version_policy { specific { versions: 1 versions: 3 } }
            version_labels { key: "stable" value: 1 }
          }
        }
    """)
    a, b, c, d = read_config(path)
    assert (a.folders, a.num_latest, a.specific) == ((Path("/a"),), 1, ())
    assert (b.num_latest, c.num_latest, d.num_latest) == (2, None, None)
    assert b.folders == (tmp_path / "b", Path.cwd() / "b")
    assert d.aspired([1, 2, 3]) == [3, 1]
    assert d.labels == {"stable": 1}


def test_a_relative_folder_is_looked_for_beside_the_file_and_then_here(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "models.config"
    path.write_text('model_config_list { config { name: "a" base_path: "models/a" } }')
    (tmp_path / "models" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (config,) = read_config(path)
    assert config.folder == tmp_path / "models" / "a"
    (tmp_path / "configs" / "models" / "a").mkdir(parents=True)
    assert config.folder == tmp_path / "configs" / "models" / "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('config { name: "a" base_path: "a" } config { name: "a" base_path: "b" }', "names must be distinct"),
        (
            'config { name: "a" base_path: "a" model_platform: "torch" }',
            'model_platform must be "tensorflow"',
        ),
        ('config { name: "a" base_path: "a" model_version_policy { specific { } } }', "names no version"),
    ],
)
def test_wrong_configs_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "models.config"
    path.write_text(f"model_config_list {{ {text} }}")
    with pytest.raises(ValueError, match=message):
        read_config(path)
