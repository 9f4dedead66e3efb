//! Committed bindings to libxenctrl, libxenguest and their helpers, one module per Xen version.
