"""One's own corpus, network, loss, learned leaf, objective and query, on 4 devices."""

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
        mean = (x * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        return self.out(nnx.tanh(self.hidden(mean)))


def my_net(vectors, C):
    return dj.models.from_nnx(lambda rngs: Net(50, C, rngs=rngs), vectors)


def weighted(model):  # a loss that reads a leaf of its own: a weight for each word
    def loss(theta, batch, route=None, *, key=None):
        weight = batch.more.get("weight", jnp.ones_like(batch.mask))[..., None]
        x = weight * dj.losses.embedded(model, theta, batch)
        return dj.losses.cross_entropy(model)(theta, batch.replace(x=x))

    return loss


def certain(loss_fn, **settings):  # the unrolled loss, and labels that are sure
    def objective(distilled, theta_0, batch):
        entropy = -(distilled.y * jnp.log(distilled.y)).sum(-1).mean()
        return dj.unrolled(loss_fn, **settings)(distilled, theta_0, batch) + entropy / 9

    return objective


def unsure(log_probs, key):  # a query: where the most probable class is least so
    return -log_probs[0].max(-1)


corpus = dj.data.load("rotten_tomatoes").train
lists = corpus.texts[::4], corpus.labels[::4]
task = dj.make_task(lists, my_net, loss=weighted, length=20)
ours = {"meta__objective": certain, "meta__inits": 4, "meta__steps": 150}
ours["start__more"] = {"weight": lambda x: jnp.ones(x.shape[:3])}
recipe, query = dj.recipe(inner__lr=0.05, **ours), dj.queries.by_score(unsure, passes=1)
methods = {
    "mine": dj.distilled(recipe, ways=["native"], seeds=1, devices="all", how="pmap"),
    "k-means": dj.selected("kmeans_medoids"),
    "unsure": dj.queried(dj.named("unsure", query), passes=1),
}
small = dj.Protocol(test_inits=4, selection_seeds=2)
for row in dj.compare(task, methods, [5], protocol=small, devices="all"):
    print(f"{row.method:10} {row.accuracy_mean:6.1%}")
