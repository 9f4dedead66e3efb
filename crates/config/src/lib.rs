//! The xl.cfg language and its typed form, with diagnostics that point at the line.
