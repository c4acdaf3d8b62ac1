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
    from distill_jax.parallel import (
        PARALLEL,
        first_says,
        is_first_process,
        join,
        meta_steps,
        on_any_host,
        over_devices,
    )

    join(f"127.0.0.1:{port}", 2, int(process_id))
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    from tests.test_parallel import three_steps
    from tests.tiny import MODEL, OBJECTIVE, TX, digest, next_rows, problem, run

    said: dict = {"any": [on_any_host(process_id == "1"), on_any_host(False)]}
    said["first"] = [first_says(10 + int(process_id)), is_first_process()]
    keys = jax.random.split(jax.random.key(0), 3)
    said["scores"] = over_devices(jax.random.normal, "all")(keys).tolist()
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
        return next_rows(k)

    schedule = Schedule(6, 3, 6, report_every=2)
    for how in ("pmap", "shard_map"):
        steps = meta_steps(OBJECTIVE, MODEL.init, TX, devices="all", how=how)
        options = {"steps": steps, "num_inits": 8, "schedule": schedule}
        try:
            run(folder + how, next_rows=told_to_stop, **options)
        except Interrupted as stopped:
            said["stopped"] = stopped.step
        result = run(folder + how, resume=True, **options)
        said.setdefault("loop", []).append([result.resumed_from, digest(result)])
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
