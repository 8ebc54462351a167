"""Feed ranking on the synthetic world of `millrace events generate`."""

from typing import Any

from millrace.ops.table_config import Adagrad, RandomUniform
from millrace.training.task import Head, LabelRule, SparseFeature, Task

_FACTORS = 8
_FACTOR_RULE = Adagrad(0.05, initial_accumulator_value=0.5)
_NEAR_ZERO = RandomUniform(-0.03, 0.03)


class FeedRanking(Task):
    """Will this user click or like this item, on this device, at this hour?

    Items rise and fall within minutes, so the biases learn fast and the factors slowly.
    """

    name = "feed"
    features = (
        SparseFeature("user", 1, "user_id", _FACTORS, optimizer=_FACTOR_RULE, initializer=_NEAR_ZERO),
        SparseFeature("item", 2, "item_id", _FACTORS, optimizer=_FACTOR_RULE, initializer=_NEAR_ZERO),
        SparseFeature("user_bias", 1, "user_id", 1, optimizer=Adagrad(0.35)),
        SparseFeature("item_bias", 2, "item_id", 1, optimizer=Adagrad(0.5)),
        SparseFeature("device", 3, "context.device", 1, optimizer=Adagrad(0.04)),
        SparseFeature("hour", 4, "context.hour", 1, optimizer=Adagrad(0.04), dtype="int64"),
    )
    heads = (Head("click", LabelRule("click", ("click", "like"))),)

    def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
        import keras

        dot = keras.layers.Dot(axes=1, name="affinity")([embeddings["user"], embeddings["item"]])
        first_order = [embeddings[name] for name in ("user_bias", "item_bias", "device", "hour")]
        terms = keras.layers.Concatenate()([*first_order, dot])
        return {"click": keras.layers.Dense(1, kernel_initializer="ones", name="logit")(terms)}
