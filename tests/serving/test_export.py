import json
import os
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner

import serving.export
from kxray.spec import ModelSpec
from serving import graph, warmup
from serving.export import export_model, versions

SIGNATURES = {"serving_default", "predict_pixels", "explain", "explain_grad_cam", "describe"}


def test_every_signature_answers_alike_in_a_session_without_kxray(
    version_folder, model, spec, make_film, keras_answer, ask_session
):
    import kxray
    from kxray.layers.film_input import film_input

    films = [make_film(0, 90, 70), make_film(1, 40, 120), make_film(3, 90, 70)]
    encoded = np.array([kxray.io.encode_png16(film) for film in films], dtype=object)
    labels = np.array([0, 1, -1], np.int32)
    requests = {
        "serving_default": {"image_bytes": encoded},
        "predict_pixels": {"pixels": films[0][None, ..., None]},
        "explain": {"image_bytes": encoded, "label": labels},
        "explain_grad_cam": {"image_bytes": encoded, "label": labels},
        "describe": {},
    }
    answers = ask_session(version_folder, requests)
    assert set(answers) == SIGNATURES

    expected = keras_answer(films)
    decisions = [spec.decide(row) for row in expected]
    assert decisions == ["lateral", "unsure", "frontal"], "the fixture's films must tell these apart"
    np.testing.assert_allclose(answers["predict_pixels"]["probabilities"], expected[:1], atol=1e-5)
    inputs = np.concatenate([film_input(spec)(film[None, ..., None]) for film in films])
    maps = kxray.explain.attribute(model, inputs, 0, "grad_cam")[..., 0]
    signs = np.array([-1, 1, 1 if expected[2, 1] > 0.5 else -1])[:, None, None]
    for name in ("serving_default", "explain", "explain_grad_cam"):
        np.testing.assert_allclose(answers[name]["probabilities"], expected, atol=1e-5)
        assert answers[name]["label"].tolist() == [spec.labels[row.argmax()].encode() for row in expected]
        assert answers[name]["decision"].tolist() == [decision.encode() for decision in decisions]
        if name != "serving_default":
            np.testing.assert_allclose(answers[name]["heatmap"], signs * maps, atol=1e-5)
            assert answers[name]["explained_label"].tolist()[:2] == [b"frontal", b"lateral"]
    assert ModelSpec.from_json(answers["describe"]["spec"][0].decode()) == spec
    assert answers["describe"]["labels"].tolist() == [[b"frontal", b"lateral"]]


def test_both_depths_and_jpeg_decode_as_read_image_does(version_folder, make_film, keras_answer, tmp_path):
    import tensorflow as tf
    from PIL import Image

    import kxray

    eight_bits = (make_film(3) * 255).round().astype("uint8")
    files = {"grey.png": "L", "colour.png": "RGB", "alpha.png": "LA", "grey.jpg": "L", "colour.jpg": "RGB"}
    for name, mode in files.items():
        Image.fromarray(eight_bits).convert(mode).save(tmp_path / name)
    kxray.io.write_png16(tmp_path / "deep.png", make_film(3))
    paths = [tmp_path / name for name in [*files, "deep.png"]]
    loaded = tf.saved_model.load(str(version_folder))
    answer = loaded.signatures["serving_default"](
        image_bytes=tf.constant([path.read_bytes() for path in paths])
    )
    expected = keras_answer([kxray.read_image(path).pixels for path in paths])
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)


def test_a_batch_of_five_equals_five_batches_of_one(version_folder, make_film):
    import tensorflow as tf

    import kxray

    function = tf.saved_model.load(str(version_folder)).signatures["explain"]
    films = [kxray.io.encode_png16(make_film(seed, 50 + 9 * seed, 60)) for seed in range(5)]
    together = function(image_bytes=tf.constant(films), label=tf.constant([1] * 5))
    for number, film in enumerate(films):
        alone = function(image_bytes=tf.constant([film]), label=tf.constant([1]))
        for key in ("probabilities", "heatmap"):
            np.testing.assert_allclose(together[key][number], alone[key][0], atol=1e-5)


def test_assets_hold_the_spec_and_a_warmup_request_for_every_signature(version_folder, spec):
    assert ModelSpec.read(version_folder / "assets.extra" / "spec.json") == spec
    requests = warmup.read(version_folder / "assets.extra" / warmup.FILE_NAME)
    assert {request.model_spec.signature_name for request in requests} == SIGNATURES
    assert len(requests) <= 1000
    assert {request.model_spec.name for request in requests} == {"view"}
    total = sum(path.stat().st_size for path in version_folder.rglob("*") if path.is_file())
    assert total < 1_000_000, "weights must be stored once"


def test_the_program_exports_a_run_folder_and_counts_up(model, spec, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    model.save(run / "model.keras")
    (run / "spec.json").write_text(spec.to_json())
    target = tmp_path / "models" / "view"
    (target / "41").mkdir(parents=True)
    result = CliRunner().invoke(serving.export.main, [str(run / "model.keras"), "--to", str(target)])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(target / "42")
    assert versions(target) == [41, 42]
    assert {path.name for path in target.iterdir()} == {"41", "42"}
    assert (target / "42").stat().st_mode & 0o777 == 0o755


def test_an_export_that_differs_from_keras_is_not_published(model, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "_probabilities", lambda logits, spec: graph.tf.sigmoid([0.5, 0.5] * logits))
    with pytest.raises(ValueError, match=r"differs from the Keras model by .* nothing was written"):
        export_model(model, spec, tmp_path / "view")
    assert list((tmp_path / "view").iterdir()) == []


def test_what_killed_exports_left_is_removed(model, spec, tmp_path, monkeypatch):
    for name, age in {".export-killed": 3700, ".export-running": 60, "7": 3700}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    monkeypatch.setattr(serving.export, "_write", lambda *_: None)
    monkeypatch.setattr(serving.export, "_verify", lambda *_: None)
    export_model(model, spec, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".export-running", "7", "8"}


def test_the_program_writes_one_line_where_the_target_is_a_file(model, spec, run_python, tmp_path):
    model.save(tmp_path / "model.keras")
    (tmp_path / "spec.json").write_text(spec.to_json())
    target = tmp_path / "target"
    target.write_text("")
    code = "import os; del os.environ['TF_CPP_MIN_LOG_LEVEL']; import serving.export; serving.export.main()"
    done = run_python(code, tmp_path, "--to", target)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {target}: File exists\n")


def test_concurrent_exports_get_different_numbers(tmp_path):
    unfinished = []
    for number in range(12):
        folder = tmp_path / f".export-{number}"
        folder.mkdir()
        (folder / "saved_model.pb").write_text(str(number))
        unfinished.append(folder)
    barrier, published = threading.Barrier(12), []

    def publish(folder):
        barrier.wait()
        published.append(serving.export._publish(folder, tmp_path).name)

    threads = [threading.Thread(target=publish, args=[folder]) for folder in unfinished]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, published)) == list(range(1, 13))
    assert {(tmp_path / name / "saved_model.pb").read_text() for name in published} == set(
        map(str, range(12))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (32, 32)}, r"the spec says input \(None, 32, 32, 1\)"),
        ({"task": "multiclass"}, "a multiclass model of 2 labels has 2 output units"),
    ],
)
def test_a_model_that_does_not_fit_its_spec_is_refused(model, spec, tmp_path, change, message):
    fields = json.loads(spec.to_json()) | change
    del fields["format"]
    with pytest.raises(ValueError, match=message):
        export_model(model, ModelSpec(**fields), tmp_path / "view")
    assert not (tmp_path / "view").exists()


def test_unknown_method_and_missing_run_are_one_line(model, spec, tmp_path):
    with pytest.raises(
        ValueError, match="unknown explanation method 'magic'; the known ones are: .*grad_cam"
    ):
        export_model(model, spec, tmp_path / "view", explain=["magic"])
    result = CliRunner().invoke(
        serving.export.main, [str(tmp_path / "no_run"), "--to", str(tmp_path / "view")]
    )
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert "no_run" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_exclusive_and_independent_labels(task, make_film, fixed_weights):
    import keras
    import tensorflow as tf

    labels = ("Effusion", "Mass", "Nodule")
    activation = "softmax" if task == "multiclass" else "sigmoid"
    film = keras.Input((24, 24, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu")(film)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(3, activation=activation)(x)
    model = fixed_weights(keras.Model(film, outputs), gain=20.0)
    thresholds = {"Effusion": 0.0, "Mass": 1.0, "Nodule": 0.0}
    spec = ModelSpec("toy", labels, task, (24, 24), thresholds=thresholds)
    functions = {name: pair[0] for name, pair in graph.endpoints(model, spec, ["grad_cam"]).items()}
    pixels = make_film(0, 24, 24)[None, ..., None]
    answer = functions["predict_pixels"](tf.constant(pixels))
    expected = model.predict(pixels, verbose=0)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
    assert answer["label"].numpy().tolist() == [labels[expected[0].argmax()].encode()]
    decision = answer["decision"].numpy().tolist()[0].decode()
    assert decision == ("Effusion|Nodule" if task == "multilabel" else spec.decide(expected[0]))
    png = tf.io.encode_png(tf.cast(tf.round(pixels[0] * 65535), tf.uint16))
    maps = functions["explain"](png[None], tf.constant([2]))
    assert maps["heatmap"].shape == (1, 22, 22)
    assert maps["explained_label"].numpy().tolist() == [b"Nodule"]


def test_a_model_of_mixed_precision_is_served_within_its_rounding(make_film, fixed_weights, spec, tmp_path):
    import keras
    import tensorflow as tf

    import kxray

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = fixed_weights(kxray.models.build("view_cnn"))
    finally:
        keras.config.set_dtype_policy(before)
    loaded = tf.saved_model.load(str(export_model(model, spec, tmp_path / "view")))
    answer = loaded.signatures["predict_pixels"](pixels=tf.constant(make_film()[None, ..., None]))
    assert answer["probabilities"].dtype == tf.float32
    np.testing.assert_allclose(tf.reduce_sum(answer["probabilities"]), 1, atol=1e-6)
