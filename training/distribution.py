"""Devices and number formats, decided once a run."""

import contextlib

STRATEGIES = ("auto", "none", "mirrored")


def set_up(recipe, seed) -> tuple:
    """What every run decides before it builds a model: devices, number format, determinism and seeds.

    Args:
        recipe: its options strategy, batch_size, mixed_precision and deterministic.
        seed: of Python, NumPy and the backend.

    Returns:
        ((context manager to build a model in, number of replicas), name of the dtype policy).

    Raises:
        ValueError: see `strategy_scope`.
    """
    import keras
    import tensorflow as tf

    if recipe.deterministic:
        tf.config.experimental.enable_op_determinism()
    devices = strategy_scope(recipe.strategy, recipe.batch_size)
    policy = set_precision(recipe.mixed_precision)
    keras.utils.set_random_seed(seed)
    return devices, policy


def strategy_scope(strategy, batch_size):
    """Returns (context manager to build a model in, number of replicas).

    Args:
        strategy: "none" (one device), "mirrored" (every GPU, or every logical CPU where there is no GPU), or
            "auto" (mirrored where there are several GPUs).
        batch_size: films a step over all replicas.

    Raises:
        ValueError: a batch that does not divide among the replicas.
    """
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    if strategy == "none" or (strategy == "auto" and len(gpus) < 2):
        return contextlib.nullcontext, 1
    devices = gpus or tf.config.list_logical_devices("CPU")
    if batch_size % len(devices):
        raise ValueError(
            f"a batch of {batch_size} films does not divide among {len(devices)} devices; choose a multiple"
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices]).scope, len(devices)


def set_precision(mixed_precision: bool) -> str:
    """Sets the dtype policy of the layers built from here on and returns its name.

    Half precision is float16 on GPUs, whose matrix units want it, and bfloat16 on CPUs, which have no float16
    arithmetic. Model outputs stay float32 either way.
    """
    import keras
    import tensorflow as tf

    half = "mixed_float16" if tf.config.list_physical_devices("GPU") else "mixed_bfloat16"
    policy = half if mixed_precision else "float32"
    keras.config.set_dtype_policy(policy)
    return policy
