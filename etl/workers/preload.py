"""The imports of every worker: the server that workers fork from makes them once, for all."""

from etl import examine, render

__all__ = ["examine", "render"]
