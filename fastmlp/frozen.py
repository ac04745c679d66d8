"""Programs frozen by PyInstaller: it asks the entry point ``pyinstaller40`` for hooks."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """List the folders of PyInstaller's hooks.

    Returns:
        Paths: one.
    """
    return [str(Path(__file__).parent / "hooks")]
