"""PyInstaller: kernels and drivers are imported by names that it cannot see in the source."""

from PyInstaller.utils.hooks import collect_submodules

# in an editable install the kernels are in a folder of their own, where the first does not look
hiddenimports = collect_submodules("fastmlp") + collect_submodules("fastmlp.kernels")
# Triton compiles from the source
module_collection_mode = "pyz+py"
