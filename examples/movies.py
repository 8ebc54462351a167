"""Movie ranking on MovieLens ratings: a factorization machine whose tables learn fast."""

from typing import Any

from millrace.ops.table_config import Adagrad, RandomUniform
from millrace.training.task import Head, LabelRule, SparseFeature, Task

_FACTORS = 8
_FACTOR_RULE = Adagrad(0.14, initial_accumulator_value=0.5)
_NEAR_ZERO = RandomUniform(-0.03, 0.03)


class MovieRanking(Task):
    """Will this user rate this movie 4 or better?

    A user rates many movies within minutes, so the biases of users and items learn within so many rows. Genres and year
    help where a movie is new; a request may leave them empty.
    """

    name = "movies"
    features = (
        SparseFeature("user", 1, "user_id", _FACTORS, optimizer=_FACTOR_RULE, initializer=_NEAR_ZERO),
        SparseFeature("item", 2, "item_id", _FACTORS, optimizer=_FACTOR_RULE, initializer=_NEAR_ZERO),
        SparseFeature("user_bias", 1, "user_id", 1, optimizer=Adagrad(0.85)),
        SparseFeature("item_bias", 2, "item_id", 1, optimizer=Adagrad(0.4)),
        SparseFeature("genres", 3, "context.genres", 1, optimizer=Adagrad(0.05)),
        SparseFeature("year", 4, "context.year", 1, optimizer=Adagrad(0.05)),
    )
    heads = (Head("like", LabelRule("like", ("rate",), min_value=4.0)),)

    def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
        import keras

        affinity = keras.layers.Dot(axes=1, name="affinity")([embeddings["user"], embeddings["item"]])
        first_order = [embeddings[name] for name in ("user_bias", "item_bias", "genres", "year")]
        terms = keras.layers.Concatenate()([*first_order, affinity])
        return {"like": keras.layers.Dense(1, kernel_initializer="ones", name="logit")(terms)}


class MovieContent(Task):
    """The same question answered from genres and year alone, without ids: the baseline of what ids are worth."""

    name = "movie-content"
    features = (
        SparseFeature("genres", 3, "context.genres", 1, optimizer=Adagrad(0.1)),
        SparseFeature("year", 4, "context.year", 1, optimizer=Adagrad(0.1)),
    )
    heads = MovieRanking.heads

    def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
        import keras

        terms = keras.layers.Concatenate()([embeddings["genres"], embeddings["year"]])
        return {"like": keras.layers.Dense(1, kernel_initializer="ones", name="logit")(terms)}
