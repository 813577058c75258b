"""Networks written for other runtimes: `export`. What is exported is run by `tiepoint.runtimes`."""

from .write import ExportedFolder, Runtime, export

__all__ = ["ExportedFolder", "Runtime", "export"]
