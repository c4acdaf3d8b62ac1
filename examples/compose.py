"""One's own corpus, network, loss, leaf, objective and query, on four devices.

python examples/compose.py
"""

import jax

jax.config.update("jax_num_cpu_devices", 4)  # before anything else of JAX

import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

import distill_jax as dj  # noqa: E402


class Net(nnx.Module):
    def __init__(self, width, num_classes, *, rngs):
        self.hidden = nnx.Linear(width, 64, rngs=rngs)
        self.out = nnx.Linear(64, num_classes, rngs=rngs)

    def __call__(self, x, mask):
        weight = mask.astype(x.dtype)[..., None]
        return self.out(nnx.tanh(self.hidden((x * weight).sum(1) / weight.sum(1))))


def my_net(vectors, num_classes):
    make = lambda rngs: Net(vectors.shape[1], num_classes, rngs=rngs)  # noqa: E731
    return dj.models.from_nnx(make, vectors)


def weighted(model):  # a loss that reads a leaf of its own: a weight for each word
    plain = dj.losses.cross_entropy(model)

    def loss(theta, batch, route=None, *, key=None):
        weight = batch.more.get("word_weight", jnp.ones_like(batch.mask))
        return plain(
            theta,
            batch.replace(
                x=model.embed(theta, batch.x) * weight[..., None]
                if jnp.issubdtype(batch.x.dtype, jnp.integer)
                else batch.x * weight[..., None]
            ),
        )

    return loss


def certain(loss_fn, **settings):  # the unrolled loss, and labels that are sure
    unrolled = dj.unrolled(loss_fn, **settings)

    def objective(distilled, theta_0, batch):
        entropy = -(distilled.y * jnp.log(distilled.y)).sum(-1).mean()
        return unrolled(distilled, theta_0, batch) + 0.05 * entropy

    return objective


def main():
    corpus = dj.data.load("rotten_tomatoes").train
    texts, labels = corpus.texts[::4], corpus.labels[::4]
    task = dj.make_task((texts, labels), my_net, loss=weighted, length=20)
    recipe = dj.recipe(
        inner__lr=0.05,
        meta__steps=150,
        meta__inits=4,
        meta__objective=certain,
        start__more={"word_weight": lambda x: jnp.ones(x.shape[:3])},
    )
    unsure = dj.queries.by_score(lambda log_probs, key: -log_probs[0].max(-1), passes=1)
    methods = {
        "mine": dj.distilled(
            recipe, ways=("native",), seeds=1, devices="all", how="pmap"
        ),
        "k-means": dj.selected("kmeans_medoids"),
        "unsure": dj.queried(dj.named("unsure", unsure), passes=1),
    }
    protocol = dj.Protocol(test_inits=4, selection_seeds=2)
    for row in dj.compare(task, methods, [5], protocol=protocol, devices="all"):
        print(f"{row.method:10} {row.accuracy_mean:6.1%}  {row.training or ''}")


if __name__ == "__main__":
    main()
