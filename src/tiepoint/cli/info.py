"""``tiepoint info``: what this installation and this machine are."""

from __future__ import annotations

from .console import JsonOption, print_json
from .weights import found


def info(json: JsonOption = False) -> None:
    """Tell versions, device, CPU features, threads, and the weights found: all that a bug report needs."""
    from .. import devices, features, matchers, pipeline, weights
    from .._version import __version__

    told = {
        "tiepoint": __version__,
        **devices.describe(),
        "extractors": features.names(),
        "matchers": matchers.names(),
        "auto": pipeline.choose()[2],
        "cache": str(weights.cache_dir()),
        "weights": {name: path for name in weights.entries() if (path := found(name)) is not None},
    }
    if json:
        print_json(told)
        return

    def versions(packages: dict[str, str | None]) -> str:
        return ", ".join(f"{name} {version or '(not installed)'}" for name, version in packages.items())

    cpu = told["cpu"]
    lines = {
        "tiepoint": told["tiepoint"],
        "python": f"{told['python']} on {told['platform']}",
        "packages": versions(told["packages"]),
        "optional": versions(told["optional_packages"]),
        "device": told["device"],
        "cpu": ", ".join([cpu["model"], f"{cpu['cores']} cores", f"{cpu['threads']} threads", *cpu["features"]]),
        "extractors": ", ".join(told["extractors"]),
        "matchers": ", ".join(told["matchers"]),
        "auto": told["auto"],
        "weights": ", ".join(told["weights"]) or "none found",
        "cache": told["cache"],
    }
    for name, text in lines.items():
        print(f"{name:<11}{text}")
