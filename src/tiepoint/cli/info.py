"""``tiepoint info``: what this installation and this machine are."""

from __future__ import annotations

from .console import JsonOption, print_json
from .weights import found


def info(json: JsonOption = False) -> None:
    """Print versions, device, CPU features, threads and the weights found: what a bug report needs."""
    from .. import devices, features, matchers, pipeline, weights
    from .._version import __version__

    report = {
        "tiepoint": __version__,
        **devices.describe(),
        "extractors": features.names(),
        "matchers": matchers.names(),
        "auto": pipeline.choose()[2],
        "cache": str(weights.cache_dir()),
        "weights": {name: path for name in weights.entries() if (path := found(name)) is not None},
    }
    if json:
        print_json(report)
        return

    def versions(packages: dict[str, str | None]) -> str:
        return ", ".join(f"{name} {version or '(not installed)'}" for name, version in packages.items())

    cpu = report["cpu"]
    lines = {
        "tiepoint": report["tiepoint"],
        "python": f"{report['python']} on {report['platform']}",
        "packages": versions(report["packages"]),
        "optional": versions(report["optional_packages"]),
        "device": report["device"],
        "cpu": ", ".join([cpu["model"], f"{cpu['cores']} cores", f"{cpu['threads']} threads", *cpu["features"]]),
        "extractors": ", ".join(report["extractors"]),
        "matchers": ", ".join(report["matchers"]),
        "auto": report["auto"],
        "weights": ", ".join(report["weights"]) or "none found",
        "cache": report["cache"],
    }
    for name, text in lines.items():
        print(f"{name:<11}{text}")
