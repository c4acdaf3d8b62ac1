"""The tables of time and memory."""

from distill_jax.report import markdown
from distill_jax.results import Row, newest


def speed(results: dict[str, list[Row]]) -> str:
    """Time and temporary memory of a meta-step, by configuration."""
    rows = newest(
        results["meta_step"],
        *("config", "implementation", "backend", "num_theta_0", "threads", "device"),
    )
    if not rows:
        return markdown.no_rows("meta_step")
    # Configurations stay together, in the order they were first measured.
    order = list(dict.fromkeys(str(row["config"]) for row in rows))
    lines = [
        [
            _config(row["config"]),
            f"{row['T']}",
            f"{row['num_theta_0']}",
            row["implementation"],
            f"{row['seconds_median']:.3g}",
            "-" if row["ratio_to_torch"] is None else f"{row['ratio_to_torch']:.1f}×",
            "-" if row["temp_bytes"] is None else f"{row['temp_bytes'] / 1e6:,.1f}",
            f"{row['device']}, {row['threads']} thread{'s' * (row['threads'] > 1)}",
        ]
        for row in sorted(rows, key=lambda r: order.index(str(r["config"])))
    ]
    head = (
        "configuration | T | θ0 | implementation | seconds | times PyTorch's speed "
        "| temporary MB | device"
    )
    return markdown.table(head.split(" | "), lines)


def acquisition(results: dict[str, list[Row]]) -> str:
    """Time and memory of scoring a pool, and of picking from it."""
    rows = newest(results["acquisition"], "config", "implementation", "device")
    if not rows:
        return markdown.no_rows("acquisition")
    lines = [
        [
            row["config"],
            row["implementation"],
            f"{row['seconds_median']:.3g}",
            "-" if row["ratio_to_torch"] is None else f"{row['ratio_to_torch']:.1f}×",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}",
            "-"
            if row["compiled_peak_bytes"] is None
            else f"{row['compiled_peak_bytes'] / 1e6:,.0f}",
            "-" if row["call_bytes"] is None else f"{row['call_bytes'] / 1e6:,.0f}",
            f"{row['device']}, {row['threads']} thread{'s' * (row['threads'] > 1)}",
        ]
        for row in rows
    ]
    head = (
        "task | implementation | seconds | times PyTorch's speed | process MB "
        "| process MB, compiled before | call MB | device"
    )
    return markdown.table(head.split(" | "), lines)


def accelerator(results: dict[str, list[Row]]) -> str:
    """What one meta-step asks of each device: measured, or told by the compiler."""
    rows = newest(
        results["accelerator"], "config", "kind", "topology", "num_theta_0", "device"
    )
    if not rows:
        return markdown.no_rows("accelerator")
    lines = [
        [
            row["config"],
            f"{row['num_theta_0']:,}",
            f"{row['num_devices']} ({row['topology'] or row['device']})",
            row["kind"],
            "-" if row["step_seconds"] is None else f"{row['step_seconds']:.3g}",
            f"{row['flops'] / 1e9:,.1f}",
            f"{row['peak_bytes'] / 1e6:,.1f}",
            f"{row['all_reduces']}",
        ]
        for row in rows
    ]
    head = (
        "configuration | θ0 | devices | what | seconds | Gflop a device "
        "| peak MB a device | all-reduces"
    )
    return markdown.table(head.split(" | "), lines)


def _config(config: str | dict) -> str:
    if isinstance(config, str):
        return config
    return ", ".join(f"{name}={value}" for name, value in config.items())
