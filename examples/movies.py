"""Movie ranking on MovieLens ratings: a factorization machine whose tables learn fast."""

from typing import Any

from ops.table_config import Adagrad, RandomUniform
from training.task import Head, SparseFeature, Task
from transforms.feature_list import LabelRule

_FACTORS = 12


class MovieRanking(Task):
    """Will this user rate this movie 4 or better?"""

    name = "movies"
    features = (
        SparseFeature("user", 1, "user_id", _FACTORS, optimizer=Adagrad(0.1), initializer=RandomUniform(-0.1, 0.1)),
        SparseFeature("item", 2, "item_id", _FACTORS, optimizer=Adagrad(0.1), initializer=RandomUniform(-0.1, 0.1)),
        SparseFeature("user_bias", 1, "user_id", 1, optimizer=Adagrad(0.3)),
        SparseFeature("item_bias", 2, "item_id", 1, optimizer=Adagrad(0.3)),
    )
    heads = (Head("like", LabelRule("like", ("rate",), min_value=4.0)),)

    def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
        import keras

        dot = keras.layers.Dot(axes=1, name="affinity")([embeddings["user"], embeddings["item"]])
        biases = keras.layers.Concatenate()([embeddings["user_bias"], embeddings["item_bias"], dot])
        return {"like": keras.layers.Dense(1, kernel_initializer="ones", name="logit")(biases)}
