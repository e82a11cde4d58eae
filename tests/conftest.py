"""What holds for all tests: one thread, no network, and jaxtyping's shapes checked at run time."""

import os
import signal

# Before anything imports NumPy or torch. Tests are small: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing is downloaded at run time; a test that tried to would fail here.
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook  # noqa: E402

import tests.shape_checks  # noqa: E402, F401  (the hook finds it by name, already imported)

# Started in the background, pytest ignores these signals, and so would every process that a test starts and signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before anything imports the package.
install_import_hook("mosaic_gym", "tests.shape_checks.checked")
