"""One of the two processes of `test_parallel.test_two_processes_equal_one`."""

import json
import os
import signal
import sys

import jax


def main(port: str, process_id: str, folder: str) -> None:
    import tests.conftest  # noqa: F401  the same precision and cache

    jax.config.update("jax_num_cpu_devices", 2)
    from distill_jax.loop import Interrupted, Schedule
    from distill_jax.parallel import PARALLEL, initialize_distributed, on_any_host

    initialize_distributed(f"127.0.0.1:{port}", 2, int(process_id))
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    from tests.test_parallel import three_steps
    from tests.tiny import MODEL, OBJECTIVE, TX, digest, problem, real_batch, run

    said: dict = {"any": [on_any_host(process_id == "1"), on_any_host(False)]}
    for name in ("pmap", "shard_map"):
        step = PARALLEL[name](OBJECTIVE, MODEL.init, TX)
        state, infos = three_steps(step, *problem())
        said[name] = {
            "x": state.distilled.x.tolist(),
            "raw_lr": state.distilled.raw_lr.tolist(),
            "meta_loss": [float(i.meta_loss) for i in infos],
        }

    def told_to_stop(k):
        if k == 3 and process_id == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return real_batch(k)

    options = {"step_fn": step, "num_inits": 8, "schedule": Schedule(6, 3, 6)}
    try:
        run(folder, next_batch=told_to_stop, **options)
    except Interrupted as stopped:
        said["stopped"] = stopped.step
    result = run(folder, resume=True, **options)
    said["loop"] = [result.resumed_from, digest(result)]
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
