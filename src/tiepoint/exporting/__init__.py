"""Networks written for other runtimes: `export`. What is exported is run by `tiepoint.runtimes`."""

from .write import ExportedFolder, Precision, Runtime, export

__all__ = ["ExportedFolder", "Precision", "Runtime", "export"]
