"""How far films are from what an autoencoder gives back."""

import keras
import tensorflow as tf

# Of Wang et al. (2004); a smaller window where films are small.
_WINDOW = 11


def structural_similarity(films, others):
    """SSIM (Wang et al., 2004) of films in [0, 1], float32 (N,)."""
    films, others = tf.cast(films, tf.float32), tf.cast(others, tf.float32)
    window = min(_WINDOW, *films.shape[1:3])
    return tf.image.ssim(films, others, max_val=1.0, filter_size=window)


@keras.saving.register_keras_serializable("kxray")
def l1_ssim(films, given_back):
    """mean |error| + 1 - SSIM of each film, float32 (N,)."""
    error = tf.reduce_mean(tf.abs(tf.cast(given_back, tf.float32) - tf.cast(films, tf.float32)), (1, 2, 3))
    return error + 1.0 - structural_similarity(films, given_back)


@keras.saving.register_keras_serializable("kxray")
def squared(films, given_back):
    """Mean squared error of each film, float32 (N,)."""
    return tf.reduce_mean(tf.square(tf.cast(given_back, tf.float32) - tf.cast(films, tf.float32)), (1, 2, 3))


LOSSES = {"l1_ssim": l1_ssim, "mse": squared}
