"""Importing this enters every scenario in the table."""

import scenarios_coalescer  # noqa: F401  # pyright: ignore[reportUnusedImport]
import scenarios_ends  # noqa: F401  # pyright: ignore[reportUnusedImport]
import scenarios_lending  # noqa: F401  # pyright: ignore[reportUnusedImport]
import scenarios_limit  # noqa: F401  # pyright: ignore[reportUnusedImport]
import scenarios_slots  # noqa: F401  # pyright: ignore[reportUnusedImport]
